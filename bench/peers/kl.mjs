// How far llama.cpp's predictions from GGUF files are from those of a reference file, as
// `mamba-eval kl --window 512 --skip 256` counts it for the engine's files.
//
//   mamba-quantize models/mamba1-tiny --to gguf --type fp32 -o fp32.gguf
//   mamba-quantize models/mamba1-tiny --to gguf --type q8_0 -o q8_0.gguf
//   mamba-eval tokenize -m model.mamba -f text.txt > ids.json
//   node kl.mjs fp32.gguf q8_0.gguf --ids ids.json
//
// Each window of tokens is read from the zero state behind a start token; before each token that is
// scored, the two distributions over the whole vocabulary are compared. Prints one JSON object per
// file: tokens, kl_mean (nats), top1_agreement.
import fs from 'node:fs/promises';
import process from 'node:process';
import {parseArgs} from 'node:util';

import {failAs, importPeer} from './peer.mjs';

const kUsage =
    'usage: node kl.mjs REFERENCE.gguf FILE.gguf... --ids IDS.json [--window 512] [--skip 256] ' +
    '[--limit N] [--start 0] [--threads 1]';

const kPiece = 256;  // tokens whose predictions are held at a time

const fail = failAs('kl');

function readOptions() {
  try {
    const {values, positionals} = parseArgs({
      allowPositionals: true,
      options: {
        ids: {type: 'string'},
        window: {type: 'string', default: '512'},
        skip: {type: 'string', default: '256'},
        limit: {type: 'string', default: '9999999'},
        start: {type: 'string', default: '0'},
        threads: {type: 'string', default: '1'},
      },
    });
    if (positionals.length < 2) throw new Error('a reference and another file are needed');
    if (values.ids === undefined) throw new Error('--ids is needed');
    const options = {files: positionals, ids: values.ids};
    for (const name of ['window', 'skip', 'limit', 'start', 'threads']) {
      if (!/^[0-9]{1,7}$/.test(values[name])) throw new Error(`--${name} ${values[name]}: not a count`);
      options[name] = Number(values[name]);
    }
    if (options.skip >= options.window) throw new Error('--skip leaves nothing of a --window');
    return options;
  } catch (error) {
    return fail(`${error.message}\n${kUsage}`, 2);
  }
}

async function readIds({ids, limit}) {
  try {
    const list = JSON.parse(await fs.readFile(ids, 'utf8'));
    if (!Array.isArray(list) || !list.every(Number.isInteger)) throw new Error('not an array of ids');
    return list.slice(0, limit);
  } catch (error) {
    return fail(`${ids}: ${error.message}`);
  }
}

const {files, window, skip, start, threads, ...rest} = readOptions();
const ids = await readIds(rest);
const {getLlama} = await importPeer(fail);
const llama = await getLlama({gpu: false, build: 'never', logLevel: 'error', maxThreads: threads});

async function open(file) {
  const model = await llama.loadModel({modelPath: file});
  const context = await model.createContext(
      {contextSize: window + 8, batchSize: kPiece, sequences: 1, threads});
  return context.getSequence({checkpoints: {interval: false}});
}

// Logarithms of the probabilities of all tokens after each of `tokens`, of which the first `skip` do
// not count. The sequence goes on from where it was.
async function predictions(sequence, tokens, skip) {
  const scored = {generateNext: {logits: true, options: {temperature: 0}}};
  const output = await sequence.controlledEvaluate(tokens.map((t, i) => i < skip ? t : [t, scored]));
  return output.slice(skip).map(({next}) => {
    const logs = new Float64Array(next.logits.size);
    for (const [token, logit] of next.logits) logs[token] = logit;
    const most = logs.reduce((a, b) => Math.max(a, b));
    const total = most + Math.log(logs.reduce((sum, v) => sum + Math.exp(v - most), 0));
    return logs.map((v) => v - total);
  });
}

const likeliest = (logs) => logs.indexOf(logs.reduce((a, b) => Math.max(a, b)));

const [reference, ...others] = await Promise.all(files.map(open));
const sums = others.map(() => ({tokens: 0, kl: 0, same: 0}));
for (let at = 0; at < ids.length; at += window) {
  const read = [start, ...ids.slice(at, at + window)].slice(0, -1);
  if (read.length <= skip) break;
  for (const sequence of [reference, ...others]) await sequence.clearHistory();
  for (let from = 0; from < read.length; from += kPiece) {
    const piece = read.slice(from, from + kPiece);
    const unscored = Math.min(Math.max(skip - from, 0), piece.length);
    const expected = await predictions(reference, piece, unscored);
    for (const [i, other] of others.entries()) {
      for (const [place, q] of (await predictions(other, piece, unscored)).entries()) {
        const p = expected[place];
        for (let v = 0; v < p.length; v++) sums[i].kl += Math.exp(p[v]) * (p[v] - q[v]);
        sums[i].same += likeliest(p) === likeliest(q);
        sums[i].tokens++;
      }
    }
  }
}
for (const [i, {tokens, kl, same}] of sums.entries()) {
  console.log(JSON.stringify(
      {file: files[i + 1], tokens, kl_mean: kl / tokens, top1_agreement: same / tokens}));
}
process.exit(0);
