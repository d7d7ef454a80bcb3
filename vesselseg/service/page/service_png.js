// Lossless 8-bit grey PNG. A canvas would apply colour management, and browsers that prevent fingerprinting add noise to
// it, which would change probabilities. Format: www.w3.org/TR/png.
const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

export function fromBase64(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

export async function toBase64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let letters = "";
  for (let at = 0; at < bytes.length; at += 8192) letters += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(letters);
}

async function through(bytes, transform) {
  const stream = new Blob([bytes]).stream().pipeThrough(transform);
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** bytes: of a grey PNG of 8 bits, not interlaced. -> {width, height, values: width * height bytes, row after row}. */
export async function readGrey(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (SIGNATURE.some((value, i) => bytes[i] !== value)) throw new Error("The service sent data that is not a PNG.");
  const [width, height] = [view.getUint32(16), view.getUint32(20)];
  const [depth, colour, , , interlaced] = bytes.subarray(24, 29);
  if (depth !== 8 || colour !== 0 || interlaced) throw new Error("The service sent a PNG that is not 8-bit grey.");
  const parts = [];
  for (let at = 8; at < bytes.length;) {
    const length = view.getUint32(at);
    if (String.fromCharCode(...bytes.subarray(at + 4, at + 8)) === "IDAT") parts.push(bytes.subarray(at + 8, at + 8 + length));
    at += 12 + length;
  }
  const rows = await through(await new Blob(parts).arrayBuffer(), new DecompressionStream("deflate"));
  return { width, height, values: unfilter(rows, width, height) };
}

function unfilter(rows, width, height) {
  const values = new Uint8Array(width * height);
  const empty = new Uint8Array(width);
  for (let y = 0; y < height; y++) {
    const kind = rows[y * (width + 1)];
    const row = rows.subarray(y * (width + 1) + 1, (y + 1) * (width + 1));
    const above = y ? values.subarray((y - 1) * width, y * width) : empty;
    const out = values.subarray(y * width, (y + 1) * width);
    for (let x = 0; x < width; x++) {
      const [left, corner] = x ? [out[x - 1], above[x - 1]] : [0, 0];
      out[x] = row[x] + predicted(kind, left, above[x], corner);
    }
  }
  return values;
}

/** The predictor of a PNG filter: none, sub, up, average, Paeth. */
function predicted(kind, left, up, corner) {
  if (kind === 0) return 0;
  if (kind === 1) return left;
  if (kind === 2) return up;
  if (kind === 3) return (left + up) >> 1;
  const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
  return a <= b && a <= c ? left : b <= c ? up : corner;
}

/** values: width * height bytes. -> Blob of an 8-bit grey PNG. */
export async function writeGrey(width, height, values) {
  const rows = new Uint8Array((width + 1) * height);
  for (let y = 0; y < height; y++) rows.set(values.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header[8] = 8; // bit depth; zeros mean grey, deflate, adaptive filters, not interlaced
  const packed = await through(rows, new CompressionStream("deflate"));
  const parts = [Uint8Array.from(SIGNATURE), chunk("IHDR", header), chunk("IDAT", packed), chunk("IEND", new Uint8Array(0))];
  return new Blob(parts, { type: "image/png" });
}

function chunk(name, content) {
  const bytes = new Uint8Array(content.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  for (let i = 0; i < 4; i++) bytes[4 + i] = name.charCodeAt(i);
  bytes.set(content, 8);
  view.setUint32(bytes.length - 4, crc32(bytes.subarray(4, -4)));
  return bytes;
}

/** The check sum of PNG and zip. */
export function crc32(bytes) {
  let code = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) code = TABLE[(code ^ bytes[i]) & 255] ^ (code >>> 8);
  return ~code >>> 0;
}
