// Times llama.cpp on one GGUF file in this process, and prints one JSON object. run.mjs starts it
// anew for each measurement, in turn with the engine.
//
//   node llama.mjs FILE.gguf [--threads 1] [--prompt 16] [--generate 32] [--rounds 3]
//
// A round clears the state, reads the prompt in one batch, then generates greedily, token by token.
// One more round comes first and is not counted: it brings the file into memory. Loading is not
// timed. The library is the one that the npm package node-llama-cpp brings, made by its authors for
// this processor; nothing is compiled.
import process from 'node:process';
import {parseArgs} from 'node:util';

import {failAs, importPeer} from './peer.mjs';

const kUsage =
    'usage: node llama.mjs FILE.gguf [--threads 1] [--prompt 16] [--generate 32] [--rounds 3]';

const fail = failAs('llama');

function readOptions() {
  try {
    const {values, positionals} = parseArgs({
      allowPositionals: true,
      options: {
        threads: {type: 'string', default: '1'},
        prompt: {type: 'string', default: '16'},
        generate: {type: 'string', default: '32'},
        rounds: {type: 'string', default: '3'},
      },
    });
    if (positionals.length !== 1) throw new Error('one file is needed');
    const options = {file: positionals[0]};
    for (const [name, text] of Object.entries(values)) {
      if (!/^[0-9]{1,6}$/.test(text) || (Number(text) === 0 && name !== 'generate')) {
        throw new Error(`--${name} ${text}: not a count`);
      }
      options[name] = Number(text);
    }
    return options;
  } catch (error) {
    return fail(`${error.message}\n${kUsage}`, 2);
  }
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const median = (values) => {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
};
const now = () => Number(process.hrtime.bigint()) / 1e6;  // milliseconds

const {file, threads, prompt, generate, rounds} = readOptions();
const {getLlama} = await importPeer(fail);

// llama.cpp's own clock around its evaluations, which it logs when asked to: [prompt, tokens].
const logged = [];
function logger(level, message) {
  const match = /^llama_perf\S*\s+(?:prompt )?eval time =\s*([0-9.]+) ms/.exec(message);
  if (match) logged.push(Number(match[1]));
  else if (level === 'error' || level === 'fatal') console.error(message.trimEnd());
}

// Milliseconds of evaluation since the last call.
async function evaluationMs(context) {
  logged.length = 0;
  await context.printTimings();
  for (let wait = 0; logged.length < 2 && wait < 100; wait++) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  if (logged.length !== 2) {
    throw new Error('llama.cpp did not log its timings: is this another version of the package?');
  }
  return logged[0] + logged[1];
}

async function measure() {
  const llama =
      await getLlama({gpu: false, build: 'never', logLevel: 'info', logger, maxThreads: threads});
  const model = await llama.loadModel({modelPath: file});
  const context = await model.createContext({
    contextSize: prompt + generate + 8,
    batchSize: Math.max(prompt, 8),
    sequences: 1,
    threads,
    performanceTracking: true,
  });
  // The package would copy the state aside every few thousand tokens; that is not to be timed.
  const sequence = context.getSequence({checkpoints: {interval: false}});

  const vocabulary = model.fileInfo.metadata.tokenizer.ggml.tokens.length;
  const result = [];
  for (let round = 0; round <= rounds; round++) {
    await sequence.clearHistory();
    await evaluationMs(context);
    const input =
        Array.from({length: prompt}, (_, i) => 1 + (i * 7919 + round * 104729) % (vocabulary - 1));
    const output = sequence.evaluate(input, {temperature: 0, yieldEogToken: true});
    const step = async () => {
      const start = now();
      if ((await output.next()).done) throw new Error(`${file}: the text ended early`);
      return now() - start;
    };
    await step();
    const prefillMs = await evaluationMs(context);
    const wallMs = [];
    while (wallMs.length < generate) wallMs.push(await step());
    const ownMs = await evaluationMs(context);
    await output.return();
    if (round === 0) continue;
    // Choosing the token and the way through JavaScript are no part of the comparison: what they
    // take on average is taken off each token.
    const outsideMs = generate > 0 ? mean(wallMs) - ownMs / generate : 0;
    result.push({prefillMs, wallMs, ownMs, tokenMs: wallMs.map((ms) => ms - outsideMs)});
  }

  const used = context.currentThreads || threads;
  const info = llama.systemInfo;
  await context.dispose();
  await model.dispose();
  await llama.dispose();
  const rate = (times) => times.length > 0 ? 1000 / median(times) : null;
  return {
    program: 'llama.cpp',
    release: llama.llamaCppRelease.release,
    file: file.split('/').pop(),
    threads: used,
    prompt,
    generate,
    prefill_tps: prompt * rate(result.map(({prefillMs}) => prefillMs)),
    decode_tps: rate(result.flatMap(({tokenMs}) => tokenMs)),
    decode_wall_tps: rate(result.flatMap(({wallMs}) => wallMs)),
    // By llama.cpp's own clock alone: right also for models so small that most of a token's time is
    // the way through JavaScript.
    decode_own_tps: generate > 0 ? generate * rate(result.map(({ownMs}) => ownMs)) : null,
    rounds: result.map(({prefillMs, tokenMs}) => ({
      prefill_tps: prompt * 1000 / prefillMs,
      decode_tps: rate(tokenMs),
    })),
    peak_rss_bytes: process.resourceUsage().maxRSS * 1024,
    system_info: info.trim(),
  };
}

try {
  console.log(JSON.stringify(await measure(), (_, value) =>
      Number.isInteger(value) || typeof value !== 'number' ? value : +value.toPrecision(6)));
} catch (error) {
  fail(error.message);
}
process.exit(0);
