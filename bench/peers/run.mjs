// Sets mamba-edge beside llama.cpp: the same dimensions, the same minutes, the two in turns.
//
//   node run.mjs --models mamba-130m,mamba2-130m --types int8:Q8_0,int4:Q4_0 --threads 1,2
//
// For each model, pair of types and number of threads: engine, peer, engine, peer, ... each in a
// new process. A pair that ran back to back gives a ratio, and the ratios' median is the result.
// Progress goes to stderr, a Markdown table to stdout.
import {spawn} from 'node:child_process';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import {fileURLToPath} from 'node:url';
import {parseArgs} from 'node:util';

import {kMatrixTypes, kModels, writeGguf} from './gguf.mjs';

const here = path.dirname(fileURLToPath(import.meta.url));

const kUsage = `usage: node run.mjs [options]
  --models LIST     default mamba-130m,mamba2-130m; known are
                    ${Object.keys(kModels).join(' ')}
  --types LIST      pairs ENGINE:PEER, default int8:Q8_0,int4:Q4_0
                    (int8, int4, fp16, fp32 and ${kMatrixTypes.join(', ')})
  --threads LIST    default 1
  --states LIST     fp32, fp16, int8: how the engine keeps the state of Mamba-2 models, default
                    fp32 (Mamba-1 models and llama.cpp: always fp32)
  --rounds N        pairs of runs, default 3
  --repeat N        rounds within each run, default 3
  --prompt N        tokens to read, 0 leaves that out, default 16
  --generate N      tokens to generate, 0 leaves that out, default 32
  --isa NAME        the engine's kernels, default auto
  --bench PATH      default build/release/bin/mamba-bench
  --dir DIR         where the peer's files are made, default in the system's folder for such things
  --keep            keep the files that were made
  --out FILE        results as JSON
  --markdown FILE   the table`;

class UsageError extends Error {}

function readOptions() {
  const text = (value) => ({type: 'string', default: value});
  let values;
  try {
    ({values} = parseArgs({
      options: {
        'models': text('mamba-130m,mamba2-130m'),
        'types': text('int8:Q8_0,int4:Q4_0'),
        'threads': text('1'),
        'states': text('fp32'),
        'rounds': text('3'),
        'repeat': text('3'),
        'prompt': text('16'),
        'generate': text('32'),
        'isa': text('auto'),
        'bench': text(path.resolve(here, '../../build/release/bin/mamba-bench')),
        'dir': text(path.join(os.tmpdir(), 'mamba-edge-peers')),
        'keep': {type: 'boolean', default: false},
        'out': {type: 'string'},
        'markdown': {type: 'string'},
        'help': {type: 'boolean', short: 'h', default: false},
      },
    }));
  } catch (error) {
    throw new UsageError(error.message);
  }
  const list = (name, known) => values[name].split(',').map((item) => {
    if (known && !known.includes(item)) {
      throw new UsageError(`--${name}: unknown ${item}; known are ${known.join(', ')}`);
    }
    return item;
  });
  const count = (name, item, least) => {
    if (!/^[0-9]{1,6}$/.test(item) || Number(item) < least) {
      throw new UsageError(`--${name} ${item}: not a number from ${least} on`);
    }
    return Number(item);
  };
  const options = {
    ...values,
    models: list('models', Object.keys(kModels)),
    states: list('states', ['fp32', 'fp16', 'int8']),
    threads: list('threads').map((item) => count('threads', item, 1)),
    types: list('types').map((pair) => {
      const [engine, peer, ...more] = pair.split(':');
      if (!['int8', 'int4', 'fp16', 'fp32'].includes(engine) || !kMatrixTypes.includes(peer) ||
          more.length > 0) {
        throw new UsageError(`--types ${pair}: not a pair such as int8:Q8_0`);
      }
      return {engine, peer};
    }),
    rounds: count('rounds', values.rounds, 1),
    repeat: count('repeat', values.repeat, 1),
    prompt: count('prompt', values.prompt, 0),
    generate: count('generate', values.generate, 0),
  };
  if (options.prompt + options.generate === 0) {
    throw new UsageError('--prompt 0 --generate 0 leaves nothing to measure');
  }
  return options;
}

// More cores than this in use by others are worth a remark.
const kBusy = 0.15;

const progress = (message) => process.stderr.write(`${message}\n`);

// ---- the two programs -----------------------------------------------------------------------

// Runs a program and parses what it prints. It does not outlive `signal`.
function runJson(program, args, signal) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {stdio: ['ignore', 'pipe', 'pipe'], signal,
                                        killSignal: 'SIGKILL'});
    const name = path.basename(program);
    let stdout = '';
    let stderr = '';
    child.stdout.on('data', (bytes) => stdout += bytes);
    child.stderr.on('data', (bytes) => stderr += bytes);
    child.on('error', (error) => {
      if (error.name === 'AbortError') return;  // 'close' follows
      reject(new Error(`cannot start ${program}: ${error.message}`));
    });
    child.on('close', (status, killedBy) => {
      if (signal.aborted) return reject(signal.reason);
      if (status !== 0) {
        return reject(new Error(`${name} ${args.join(' ')}\nended with ${killedBy ?? status}:\n` +
            stderr.trim()));
      }
      try {
        resolve(JSON.parse(stdout));
      } catch {
        reject(new Error(`${name} ${args.join(' ')}\nprinted no JSON:\n${stdout.slice(0, 400)}`));
      }
    });
  });
}

async function runEngine(options, {model, types, threads}, state, signal) {
  const rows = await runJson(options.bench, [
    '--synthetic', model, '--type', types.engine, '-p', options.prompt, '-n', options.generate,
    '-t', threads, '-r', options.repeat, '--state', state, '--isa', options.isa, '-o', 'json',
  ].map(String), signal);
  const row = (test, wanted) => {
    if (!wanted) return null;
    const found = Array.isArray(rows) && rows.find((candidate) => candidate.test === test);
    if (!found || !(found.median_ms > 0)) {
      throw new Error(`${path.basename(options.bench)}: no ${test} among its results`);
    }
    return found;
  };
  const decode = row('decode', options.generate > 0);
  const prefill = row('prefill', options.prompt > 0);
  return {
    decode_tps: decode && 1000 / decode.median_ms,
    prefill_tps: prefill && 1000 * prefill.tokens / prefill.median_ms,
    fraction_of_limit: decode && decode.fraction_of_limit,
    limit_tps: decode && decode.memory_limit_gbps * 1e9 / decode.bytes_per_token,
    isa: (decode ?? prefill).isa,
    decode,
    prefill,
  };
}

async function runPeer(options, file, {threads}, signal) {
  const result = await runJson(process.execPath, [
    path.join(here, 'llama.mjs'), file, '--threads', threads, '--prompt', options.prompt || 1,
    '--generate', options.generate, '--rounds', options.repeat,
  ].map(String), signal);
  if (options.prompt === 0) result.prefill_tps = null;
  return result;
}

async function checkPrograms({bench}) {
  try {
    await fs.access(bench, fs.constants.X_OK);
  } catch {
    throw new Error(`there is no program ${bench}; build it with ` +
        '`cmake --preset release && cmake --build --preset release`, or say where it is: --bench');
  }
  try {
    import.meta.resolve('node-llama-cpp');
  } catch {
    throw new Error(
        `the package node-llama-cpp is not installed; run \`npm install\` in ${here}`);
  }
}

// ---- results --------------------------------------------------------------------------------

function spread(values) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  if (sorted.length === 0) return null;
  const median = (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
  return {median, min: sorted[0], max: sorted.at(-1)};
}

const ratio = (a, b) => a === null || b === null ? null : a / b;

// One row of the table, from pairs {engine, peer}.
function summarize({model, types, threads}, state, pairs) {
  const over = (value) => spread(pairs.map(value));
  return {
    model,
    type: types.engine,
    peer_type: types.peer,
    threads,
    state,
    isa: pairs[0].engine.isa,
    decode_ratio: over(({engine, peer}) => ratio(engine.decode_tps, peer.decode_tps)),
    prefill_ratio: over(({engine, peer}) => ratio(engine.prefill_tps, peer.prefill_tps)),
    decode_tps: over(({engine}) => engine.decode_tps),
    prefill_tps: over(({engine}) => engine.prefill_tps),
    peer_decode_tps: over(({peer}) => peer.decode_tps),
    peer_prefill_tps: over(({peer}) => peer.prefill_tps),
    limit_tps: over(({engine}) => engine.limit_tps),
    fraction_of_limit: over(({engine}) => engine.fraction_of_limit),
    pairs,
  };
}

const rounded = (value) => value >= 100 ? value.toFixed(0) : value.toFixed(1);
const cell = (range, format) => range ? format(range) : '-';
const ratioCell = (range) => cell(range, ({median, min, max}) =>
    `**${median.toFixed(2)}** (${min.toFixed(2)} to ${max.toFixed(2)})`);
const rateCell = (range) => cell(range, ({median}) => rounded(median));

function markdown(results) {
  const head = ['model', 'types', 'threads', 'state', 'engine t/s', 'llama.cpp t/s', 'ratio',
                'of memory limit', 'prompt: engine', 'llama.cpp', 'ratio'];
  const lines = [head, head.map((_, i) => i < 4 ? '---' : '---:')];
  for (const row of results) {
    lines.push([
      row.model, `${row.type} / ${row.peer_type}`, row.threads, row.state,
      rateCell(row.decode_tps), rateCell(row.peer_decode_tps), ratioCell(row.decode_ratio),
      cell(row.fraction_of_limit, ({median}) => `${(100 * median).toFixed(0)} %`),
      rateCell(row.prefill_tps), rateCell(row.peer_prefill_tps), ratioCell(row.prefill_ratio),
    ]);
  }
  const table = lines.map((cells) => `| ${cells.join(' | ')} |\n`).join('');
  const all = results.flatMap(({pairs}) => pairs);
  const disturbed = all.filter((pair) => pair.other_cores > kBusy).length;
  return disturbed === 0 ? table :
      `${table}\n${disturbed} of ${all.length} pairs began while other programs were busy.\n`;
}

function describe(name, result) {
  const parts = [];
  if (result.prefill_tps !== null) parts.push(`prompt ${rounded(result.prefill_tps)}`);
  if (result.decode_tps !== null) parts.push(`generating ${rounded(result.decode_tps)}`);
  return `${name}: ${parts.join(', ')} tokens/s`;
}

// ---- the run --------------------------------------------------------------------------------

// States of the engine that are measured with a model; the peer knows one.
function statesFor(model, states) {
  return kModels[model].generation === 2 ? states : ['fp32'];
}

async function measureCase(options, file, one, signal) {
  const states = statesFor(one.model, options.states);
  const pairs = new Map(states.map((state) => [state, []]));
  const title = `${one.model} ${one.types.engine}:${one.types.peer}, ${one.threads} thread` +
      (one.threads > 1 ? 's' : '');
  for (let round = 1; round <= options.rounds; round++) {
    const busy = await coresInUse();
    progress(`${title}, pair ${round} of ${options.rounds}` +
        (busy > kBusy ? `; other programs use ${busy.toFixed(1)} cores` : ''));
    const engines = [];
    for (const state of states) {
      engines.push(await runEngine(options, one, state, signal));
      progress(`  ${describe(`engine, ${state} state`, engines.at(-1))}`);
    }
    const peer = await runPeer(options, file, one, signal);
    progress(`  ${describe('llama.cpp', peer)}`);
    states.forEach((state, i) => {
      const pair = {other_cores: busy, engine: engines[i], peer};
      pairs.get(state).push(pair);
      const parts = ['prefill_tps', 'decode_tps'].map((name) =>
          ratio(engines[i][name], peer[name])).map((r) => r === null ? '-' : r.toFixed(2));
      progress(`  ratio, ${state} state: prompt ${parts[0]}, generating ${parts[1]}`);
    });
  }
  return states.map((state) => summarize(one, state, pairs.get(state)));
}

// Cores that other programs keep busy, while this one waits. llama.cpp's threads meet after every
// operation: when one of them has to share its core, all are many times slower.
async function coresInUse() {
  const used = () => os.cpus().reduce((sum, {times}) =>
      sum + times.user + times.nice + times.sys + times.irq, 0);
  const before = used();
  const start = performance.now();
  await new Promise((resolve) => setTimeout(resolve, 500));
  return (used() - before) / (performance.now() - start);
}

async function exists(file) {
  return fs.access(file).then(() => true, () => false);
}

async function main(signal) {
  const options = readOptions();
  if (options.help) return console.log(kUsage);
  await checkPrograms(options);
  await fs.mkdir(options.dir, {recursive: true});

  const report = {
    format: 'mamba-edge-peers 1',
    date: new Date().toISOString(),
    machine: {
      cpu: os.cpus()[0]?.model.trim() ?? 'unknown',
      cores: os.availableParallelism(),
      system: `${os.type()} ${os.release()} ${os.arch()}`,
    },
    options: {prompt: options.prompt, generate: options.generate, rounds: options.rounds,
              repeat: options.repeat, isa: options.isa},
    results: [],
  };
  const save = async () => {
    if (options.out) await fs.writeFile(options.out, JSON.stringify(report, null, 1) + '\n');
    if (options.markdown) await fs.writeFile(options.markdown, markdown(report.results));
  };

  try {
    for (const model of options.models) {
      for (const types of options.types) {
        const file = path.join(options.dir, `${model}-${types.peer}.gguf`);
        const made = !await exists(file);
        try {
          if (made) {
            progress(`making ${file}`);
            await writeGguf(model, types.peer, file, {signal});
          }
          for (const threads of options.threads) {
            const one = {model, types, threads};
            report.results.push(...await measureCase(options, file, one, signal));
            await save();  // what has been measured outlives what goes wrong next
          }
        } finally {
          if (made && !options.keep) await fs.rm(file, {force: true});
        }
      }
    }
  } finally {
    if (report.results.length > 0) process.stdout.write(markdown(report.results));
  }
}

const interrupt = new AbortController();
for (const name of ['SIGINT', 'SIGTERM']) {
  process.once(name, () => {  // a second one ends this program at once
    progress('interrupted');
    interrupt.abort();
  });
}
try {
  await main(interrupt.signal);
} catch (error) {
  if (interrupt.signal.aborted) process.exit(130);
  if (error instanceof UsageError) {
    progress(`run: ${error.message}\n\n${kUsage}`);
    process.exit(2);
  }
  progress(`run: ${error.message}`);
  process.exit(1);
}
