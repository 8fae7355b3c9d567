// Draws what mamba-bench (-o json) or peers/run.mjs (--out) measured: tokens per second, against
// what the machine's memory allows and against llama.cpp where that was measured too.
//
//   node bench/plot.mjs RESULTS.json... -o plot.svg [--title TEXT] [--threads 1]
//
// Each model has a scale of its own, from zero to its fastest row's limit, so that small and large
// models can be read in one picture.
import fs from 'node:fs';
import process from 'node:process';
import {parseArgs} from 'node:util';

const kUsage = 'usage: node plot.mjs RESULTS.json... -o plot.svg [--title TEXT] [--threads LIST]';

class UsageError extends Error {}

// ---- input ----------------------------------------------------------------------------------

// Rows {model, type, threads, state, isa, engine, limit, peer}; the last three in tokens per
// second.
function rowsOf(file) {
  let data;
  try {
    data = JSON.parse(fs.readFileSync(file, 'utf8'));
  } catch (error) {
    throw new Error(`${file}: ${error.message}`);
  }
  if (Array.isArray(data)) {
    return data.filter(({test, batch}) => test === 'decode' && (batch ?? 1) === 1).map((row) => ({
      ...pick(row),
      engine: 1000 / row.median_ms,
      limit: row.memory_limit_gbps * 1e9 / row.bytes_per_token,
    }));
  }
  if (String(data?.format).startsWith('mamba-edge-peers ')) {
    return data.results.filter((row) => row.decode_tps).map((row) => ({
      ...pick(row),
      engine: row.decode_tps.median,
      limit: row.limit_tps.median,
      peer: row.peer_decode_tps.median,
    }));
  }
  throw new Error(`${file}: neither results of mamba-bench nor of peers/run.mjs`);
}

// A model may be a file's path.
function pick({model, type, threads, state = 'fp32', isa = ''}) {
  return {model: model.split('/').pop().replace(/\.mamba$/, ''), type, threads, state, isa};
}

// Later results replace earlier ones; what llama.cpp did stays.
function merge(rows) {
  const merged = new Map();
  for (const row of rows) {
    if (!(row.engine > 0 && row.limit > 0)) throw new Error(`${row.model}: no speeds`);
    const key = [row.model, row.type, row.threads, row.state, row.isa].join(' ');
    merged.set(key, {...merged.get(key), ...row});
  }
  return [...merged.values()];
}

// ---- drawing --------------------------------------------------------------------------------

const kWidth = 880;
const kMargin = 24;
const kBars = {left: 196, right: 590};  // the columns of numbers follow
const kColumns = {engine: 676, peer: 748, limit: 796, share: 856};  // right edges
const kRow = 34;
const kBar = 11;
const kColor = {
  paper: '#ffffff', ink: '#1f2328', soft: '#59636e', line: '#d8dee4', band: '#f4f6f8',
  engine: '#1f6feb', peer: '#9aa4af', limit: '#cf222e',
};

const escape = (text) => String(text).replace(/[<>&"]/g, (c) => `&#${c.charCodeAt(0)};`);
const number = (value) => value >= 100 ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2);
const pixels = (value) => +value.toFixed(1);

function text(x, y, content, style = {}) {
  const {size = 12.5, color = kColor.ink, anchor = 'start', bold = false} = style;
  return `<text x="${pixels(x)}" y="${pixels(y)}" font-size="${size}" fill="${color}"` +
      (anchor === 'start' ? '' : ` text-anchor="${anchor}"`) +
      (bold ? ' font-weight="600"' : '') + `>${escape(content)}</text>`;
}

function rect(x, y, width, height, color, radius = 0) {
  return `<rect x="${pixels(x)}" y="${pixels(y)}" width="${pixels(width)}" ` +
      `height="${pixels(height)}" fill="${color}"${radius ? ` rx="${radius}"` : ''}/>`;
}

// Names what distinguishes the row: states among one model's rows, the rest among all.
function label(row, all, group) {
  const varies = (field, rows = all) => new Set(rows.map((other) => other[field])).size > 1;
  const parts = [row.type];
  if (varies('threads')) parts.push(row.threads === 1 ? '1 thread' : `${row.threads} threads`);
  if (varies('state', group)) parts.push(`${row.state} state`);
  if (varies('isa')) parts.push(row.isa);
  return parts.join(', ');
}

function legend(y, withPeer) {
  const out = [];
  let x = kMargin;
  const item = (mark, words, width) => {
    out.push(mark(x), text(x + 20, y, words, {color: kColor.soft}));
    x += width;
  };
  item((at) => rect(at, y - 9, 14, 9, kColor.engine, 2), 'mamba-edge', 128);
  if (withPeer) item((at) => rect(at, y - 9, 14, 9, kColor.peer, 2), 'llama.cpp', 114);
  item((at) => rect(at + 6, y - 11, 2.5, 14, kColor.limit),
       'limit: memory speed / bytes that a token reads', 0);
  return out;
}

function draw(rows, title) {
  const withPeer = rows.some(({peer}) => peer > 0);
  const engineColumn = withPeer ? kColumns.engine : kColumns.peer;
  const models = groupBy(rows);
  const out = [];
  let y = kMargin + 14;
  out.push(text(kMargin, y, title, {size: 17, bold: true}));
  y += 26;
  out.push(...legend(y, withPeer));
  y += 30;
  const heading = (x, words, color) =>
      out.push(text(x, y, words, {size: 11.5, color, anchor: 'end', bold: true}));
  heading(engineColumn, 'mamba-edge', kColor.engine);
  if (withPeer) heading(kColumns.peer, 'llama.cpp', kColor.soft);
  heading(kColumns.limit, 'limit', kColor.limit);
  heading(kColumns.share, 'of limit', kColor.soft);
  y += 8;

  for (const [model, group] of models) {
    const top = Math.max(...group.flatMap(({engine, limit, peer}) => [engine, limit, peer ?? 0]));
    const scale = (kBars.right - kBars.left) / top;
    out.push(`<path d="M${kMargin} ${y}H${kWidth - kMargin}" stroke="${kColor.line}"/>`);
    y += 22;
    out.push(text(kMargin, y, model, {size: 14, bold: true}));
    y += 10;
    out.push(rect(kBars.left, y, kBars.right - kBars.left, kRow * group.length, kColor.band));
    for (const row of group) {
      const middle = y + kRow / 2;
      const bars = [[row.engine, kColor.engine]];
      if (row.peer > 0) bars.push([row.peer, kColor.peer]);
      const start = middle - kBar * bars.length / 2 - (bars.length - 1);
      bars.forEach(([rate, color], i) =>
        out.push(rect(kBars.left, start + i * (kBar + 2), rate * scale, kBar, color)));
      const limit = kBars.left + row.limit * scale;
      out.push(rect(limit - 1.25, y + 2, 2.5, kRow - 4, kColor.limit));
      out.push(text(kBars.left - 10, middle + 4, label(row, rows, group),
                    {size: 12, anchor: 'end'}));
      const value = (x, words, style) =>
        out.push(text(x, middle + 4, words, {anchor: 'end', ...style}));
      value(engineColumn, number(row.engine), {bold: true});
      if (row.peer > 0) value(kColumns.peer, number(row.peer), {color: kColor.soft});
      value(kColumns.limit, number(row.limit), {color: kColor.soft});
      value(kColumns.share, `${(100 * row.engine / row.limit).toFixed(0)} %`, {color: kColor.soft});
      y += kRow;
    }
    y += 6;
    out.push(text(kBars.left, y + 8, '0', {size: 10.5, color: kColor.soft}));
    out.push(text(kBars.right, y + 8, `${number(top)} tokens/s`,
                  {size: 10.5, color: kColor.soft, anchor: 'end'}));
    y += 22;
  }
  const height = Math.ceil(y + kMargin - 14);
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${kWidth} ${height}" ` +
      `width="${kWidth}" height="${height}" role="img" ` +
      `font-family="'DejaVu Sans', Verdana, Arial, sans-serif">\n` +
      `<title>${escape(title)}</title>\n` +
      [rect(0, 0, kWidth, height, kColor.paper), ...out].join('\n') + '\n</svg>\n';
}

function groupBy(rows) {
  const groups = new Map();
  for (const row of rows) groups.set(row.model, [...groups.get(row.model) ?? [], row]);
  return groups;
}

// ---- the program ----------------------------------------------------------------------------

function main() {
  let parsed;
  try {
    parsed = parseArgs({
      allowPositionals: true,
      options: {
        output: {type: 'string', short: 'o'},
        title: {type: 'string', default: 'Generating: tokens per second'},
        threads: {type: 'string'},
      },
    });
  } catch (error) {
    throw new UsageError(error.message);
  }
  const {values: {output, title, threads}, positionals: files} = parsed;
  if (files.length === 0 || !output) throw new UsageError('results and -o are needed');
  const wanted = threads?.split(',');
  const rows = merge(files.flatMap(rowsOf))
      .filter((row) => !wanted || wanted.includes(String(row.threads)));
  if (rows.length === 0) throw new Error('nothing to draw: no decode results');
  fs.writeFileSync(output, draw(rows, title));
}

try {
  main();
} catch (error) {
  console.error(`plot: ${error.message}${error instanceof UsageError ? `\n${kUsage}` : ''}`);
  process.exit(error instanceof UsageError ? 2 : 1);
}
