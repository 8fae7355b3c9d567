// Writes GGUF files with random weights in the dimensions of the published Mamba models: enough to
// time llama.cpp, which does the same work whatever the weights are. The text would be noise.
//
//   node gguf.mjs MODEL TYPE OUT.gguf
//
// Matrices get TYPE (F16, Q8_0 or Q4_0); vectors, the convolution and A stay F32, as in files that
// llama.cpp converts itself. Nothing is quantised: blocks are random bytes under a plausible scale.
//
// The container is version 3 of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; names of
// tensors and keys are those that llama.cpp's loader asks for.
import fs from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import {fileURLToPath} from 'node:url';

const kVocabulary = 50280;
const kConvolution = 4;
const kAlignment = 32;

export const kModels = {
  'mamba-130m': {generation: 1, dModel: 768, layers: 24},
  'mamba-370m': {generation: 1, dModel: 1024, layers: 48},
  'mamba-790m': {generation: 1, dModel: 1536, layers: 48},
  'mamba-1.4b': {generation: 1, dModel: 2048, layers: 48},
  'mamba-2.8b': {generation: 1, dModel: 2560, layers: 64},
  'mamba2-130m': {generation: 2, dModel: 768, layers: 24},
  'mamba2-370m': {generation: 2, dModel: 1024, layers: 48},
  'mamba2-780m': {generation: 2, dModel: 1536, layers: 48},
  'mamba2-1.3b': {generation: 2, dModel: 2048, layers: 48},
  'mamba2-2.7b': {generation: 2, dModel: 2560, layers: 64},
};

// Bytes that 32 weights take, and the number by which the file names the type.
const kTypes = {
  F32: {id: 0, blockBytes: 128},
  F16: {id: 1, blockBytes: 64},
  Q4_0: {id: 2, blockBytes: 18},
  Q8_0: {id: 8, blockBytes: 34},
};
export const kMatrixTypes = ['F16', 'Q8_0', 'Q4_0'];

// ---- the header -----------------------------------------------------------------------------

const u32 = (value) => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
};
const u64 = (value) => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
};
const f32 = (value) => {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(value);
  return bytes;
};
const string = (text) => {
  const bytes = Buffer.from(text, 'utf8');
  return Buffer.concat([u64(bytes.length), bytes]);
};

// Kinds of values: the number in the file, and how one is written.
const kValueKinds = {
  u32: {id: 4, write: u32},
  i32: {id: 5, write: u32},  // only positive ones occur
  f32: {id: 6, write: f32},
  string: {id: 8, write: string},
};
const kArray = 9;

function entry(key, kind, value) {
  const {id, write} = kValueKinds[kind];
  const bytes = Array.isArray(value) ?
      [u32(kArray), u32(id), u64(value.length), ...value.map(write)] :
      [u32(id), write(value)];
  return Buffer.concat([string(key), ...bytes]);
}

function dimensions(name) {
  const {generation, dModel, layers} = kModels[name];
  const dInner = 2 * dModel;
  return {
    generation, dModel, layers, dInner,
    dState: generation === 1 ? 16 : 128,
    dtRank: Math.ceil(dModel / 16),
    heads: dInner / 64,
  };
}

function metadata(name) {
  const {generation, dModel, layers, dInner, dState, dtRank, heads} = dimensions(name);
  const arch = generation === 1 ? 'mamba' : 'mamba2';
  // The loader insists on a vocabulary; token ids are all that a timing needs, so the words only
  // have to be different, with a space and a line break's stand-ins among them.
  const words = Array.from({length: kVocabulary}, (_, id) => `[${id}]`);
  words.splice(0, 3, '!', '\u0120', '\u010a');
  return [
    entry('general.architecture', 'string', arch),
    entry('general.name', 'string', `${name}, random weights`),
    entry(`${arch}.vocab_size`, 'u32', kVocabulary),
    entry(`${arch}.context_length`, 'u32', 1 << 20),
    entry(`${arch}.block_count`, 'u32', layers),
    entry(`${arch}.embedding_length`, 'u32', dModel),
    entry(`${arch}.feed_forward_length`, 'u32', 0),
    entry(`${arch}.attention.head_count`, 'u32', 0),
    entry(`${arch}.attention.layer_norm_rms_epsilon`, 'f32', 1e-5),
    entry(`${arch}.ssm.conv_kernel`, 'u32', kConvolution),
    entry(`${arch}.ssm.inner_size`, 'u32', dInner),
    entry(`${arch}.ssm.state_size`, 'u32', dState),
    entry(`${arch}.ssm.time_step_rank`, 'u32', generation === 1 ? dtRank : heads),
    ...(generation === 2 ? [entry(`${arch}.ssm.group_count`, 'u32', 1)] : []),
    entry('tokenizer.ggml.model', 'string', 'gpt2'),
    entry('tokenizer.ggml.pre', 'string', 'default'),
    entry('tokenizer.ggml.tokens', 'string', words),
    entry('tokenizer.ggml.token_type', 'i32', words.map(() => 1)),
    entry('tokenizer.ggml.merges', 'string', ['! !']),
    entry('tokenizer.ggml.bos_token_id', 'u32', 0),
    entry('tokenizer.ggml.eos_token_id', 'u32', 0),
  ];
}

// ---- the tensors ----------------------------------------------------------------------------

// What the file holds, in its order. `shape` has the fastest dimension first, as GGUF does.
// Contents are random with a root mean square of `rms`, or repeat the numbers of `pattern`.
function tensors(name, matrixType) {
  const {generation, dModel, layers, dInner, dState, dtRank, heads} = dimensions(name);
  const list = [];
  // Quantised rows are whole blocks; the dt_proj of mamba-130m has 48 columns and stays F16.
  const matrix = (tensor, rows, columns, rms) =>
      list.push({name: tensor, shape: [columns, rows], rms,
                 type: columns % 32 === 0 ? matrixType : 'F16'});
  const repeat = (tensor, shape, ...pattern) =>
      list.push({name: tensor, shape, pattern, type: 'F32'});

  matrix('token_embd.weight', kVocabulary, dModel, 0.02);
  repeat('output_norm.weight', [dModel], 1);
  for (let layer = 0; layer < layers; layer++) {
    const prefix = `blk.${layer}.`;
    const convolved = generation === 1 ? dInner : dInner + 2 * dState;
    repeat(prefix + 'attn_norm.weight', [dModel], 1);
    matrix(prefix + 'ssm_in.weight', generation === 1 ? 2 * dInner : dInner + convolved + heads,
           dModel, dModel ** -0.5);
    list.push({name: prefix + 'ssm_conv1d.weight', shape: [kConvolution, convolved], rms: 0.3,
               type: 'F32'});
    repeat(prefix + 'ssm_conv1d.bias', [convolved], 0);
    if (generation === 1) {
      matrix(prefix + 'ssm_x.weight', dtRank + 2 * dState, dInner, dInner ** -0.5);
      matrix(prefix + 'ssm_dt.weight', dInner, dtRank, dtRank ** -0.5);
      repeat(prefix + 'ssm_dt.bias', [dInner], -4.6);  // softplus gives a step of 0.01
      repeat(prefix + 'ssm_a', [dState, dInner],
             ...Array.from({length: dState}, (_, i) => -(i + 1)));
      repeat(prefix + 'ssm_d', [dInner], 1);
    } else {
      repeat(prefix + 'ssm_dt.bias', [heads], -4.6);
      repeat(prefix + 'ssm_a', [1, heads], -4);
      repeat(prefix + 'ssm_d', [1, heads], 1);
      repeat(prefix + 'ssm_norm.weight', [dInner, 1], 1);
    }
    matrix(prefix + 'ssm_out.weight', dModel, dInner, (dInner * layers) ** -0.5);
  }

  let offset = 0;
  for (const tensor of list) {
    const elements = tensor.shape.reduce((a, b) => a * b);
    tensor.bytes = elements * kTypes[tensor.type].blockBytes / 32;
    tensor.offset = offset;
    offset += Math.ceil(tensor.bytes / kAlignment) * kAlignment;
  }
  return list;
}

// ---- the weights ----------------------------------------------------------------------------

// float32 to the bits of the nearest binary16; the values here are small and finite.
function half(value) {
  const sign = value < 0 ? 0x8000 : 0;
  const magnitude = Math.abs(value);
  if (magnitude < 2 ** -14) return sign | Math.round(magnitude * 2 ** 24);
  const exponent = Math.floor(Math.log2(magnitude));
  // A fraction that rounds up to 1024 carries into the exponent, as it should.
  return sign | (((exponent + 15) << 10) + Math.round((magnitude / 2 ** exponent - 1) * 1024));
}

// Random weights, ready to be copied: kPoolBlocks blocks of 32 for each type and size of weights.
const kPoolBlocks = 1 << 16;

class Pools {
  #state = 0x9e3779b9;
  #pools = new Map();

  // Xorshift of 32 bits: the same file every time.
  random() {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x;
    return x >>> 0;
  }

  uniform(low, high) {
    return low + (high - low) * this.random() / 2 ** 32;
  }

  get(type, rms) {
    const key = `${type} ${rms}`;
    if (!this.#pools.has(key)) this.#pools.set(key, this.#make(type, rms));
    return this.#pools.get(key);
  }

  #make(type, rms) {
    const {blockBytes} = kTypes[type];
    const pool = Buffer.alloc(kPoolBlocks * blockBytes);
    if (type === 'F32' || type === 'F16') {
      const bound = rms * Math.sqrt(3);  // of a uniform distribution
      for (let i = 0; i < kPoolBlocks * 32; i++) {
        const value = this.uniform(-bound, bound);
        if (type === 'F32') pool.writeFloatLE(value, 4 * i);
        else pool.writeUInt16LE(half(value), 2 * i);
      }
      return pool;
    }
    for (let i = 0; i < pool.length; i += 2) pool.writeUInt16LE(this.random() >>> 16, i);
    // Then the scale in front of each block. Uniform bytes have a root mean square of 74, nibbles
    // (less 8) of 4.6 and a mean of -0.5: half of the scales are negative, so that no sum drifts.
    const scale = rms / (type === 'Q8_0' ? 74 : 4.6);
    for (let at = 0; at < pool.length; at += blockBytes) {
      if (type === 'Q8_0') {  // -128 is a number that no quantiser writes
        for (let i = at + 2; i < at + blockBytes; i++) if (pool[i] === 0x80) pool[i] = 0x81;
      }
      const sign = this.random() & 0x10000 ? 1 : -1;
      pool.writeUInt16LE(half(sign * scale * this.uniform(0.8, 1.2)), at);
    }
    return pool;
  }

  // The bytes of a random tensor, as pieces of the pool from a random block on.
  * pieces(type, rms, bytes) {
    const pool = this.get(type, rms);
    let start = (this.random() % kPoolBlocks) * kTypes[type].blockBytes;
    while (bytes > 0) {
      const piece = pool.subarray(start, Math.min(pool.length, start + bytes));
      yield piece;
      bytes -= piece.length;
      start = 0;
    }
  }
}

function* contents(tensor, pools) {
  if (tensor.pattern) yield Buffer.alloc(tensor.bytes, Buffer.concat(tensor.pattern.map(f32)));
  else yield* pools.pieces(tensor.type, tensor.rms, tensor.bytes);
}

// ---- the file -------------------------------------------------------------------------------

// Writes `out`, under another name until it is complete. Stops when `signal` is aborted.
// Memory: a few pools of some megabytes, whatever the size of the model.
export async function writeGguf(model, type, out, {signal} = {}) {
  if (!Object.hasOwn(kModels, model)) {
    throw new Error(`unknown model ${model}; known are ${Object.keys(kModels).join(', ')}`);
  }
  if (!kMatrixTypes.includes(type)) {
    throw new Error(`unknown GGUF type ${type}; known are ${kMatrixTypes.join(', ')}`);
  }
  const list = tensors(model, type);
  const keys = metadata(model);
  const header = Buffer.concat([
    Buffer.from('GGUF'), u32(3), u64(list.length), u64(keys.length), ...keys,
    ...list.flatMap(({name, shape, type, offset}) => [
      string(name), u32(shape.length), ...shape.map(u64), u32(kTypes[type].id), u64(offset),
    ]),
  ]);

  const part = `${out}.part`;
  const file = await fs.open(part, 'w');
  try {
    let position = 0;
    const write = async (bytes) => {
      signal?.throwIfAborted();
      for (let done = 0; done < bytes.length;) {
        done += (await file.write(bytes, done)).bytesWritten;
      }
      position += bytes.length;
    };
    const align = () => write(Buffer.alloc((kAlignment - position % kAlignment) % kAlignment));

    await write(header);
    await align();
    const pools = new Pools();
    for (const tensor of list) {
      for (const bytes of contents(tensor, pools)) await write(bytes);
      await align();
    }
    await file.close();
    await fs.rename(part, out);
  } catch (error) {
    await file.close().catch(() => {});
    await fs.rm(part, {force: true});
    throw error;
  }
}

if (process.argv[1] && path.resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const [model, type, out] = process.argv.slice(2);
  if (!out || process.argv.length !== 5) {
    console.error('usage: node gguf.mjs MODEL TYPE OUT.gguf\n' +
        `  MODEL  ${Object.keys(kModels).join(' ')}\n  TYPE   ${kMatrixTypes.join(' ')}`);
    process.exit(2);
  }
  try {
    await writeGguf(model, type, out);
  } catch (error) {
    console.error(`gguf: ${error.message}`);
    process.exit(1);
  }
}
