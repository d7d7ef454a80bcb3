// Zip files (PKWARE APPNOTE 6.3), stored, because PNGs are compressed already.
import { crc32 } from "./service_png.js";

const MOST_ENTRIES = 65535;
const MOST_BYTES = 2 ** 32 - 1;
const DATE_1980 = 33; // the earliest date of the format: the same masks give the same file

/** entries: [{name, bytes}]. -> Blob. */
export function zipOf(entries) {
  if (entries.length > MOST_ENTRIES) throw new Error(`${entries.length} files; a zip file has at most ${MOST_ENTRIES}.`);
  const [parts, directory] = [[], []];
  let offset = 0;
  for (const { name, bytes } of entries) {
    const path = new TextEncoder().encode(name);
    const common = [[2, 20], [2, 0x0800], [2, 0], [2, 0], [2, DATE_1980], [4, crc32(bytes)], [4, bytes.length], [4, bytes.length],
      [2, path.length], [2, 0]]; // version, UTF-8 names, stored, time, date, sum, sizes, lengths of name and extra field
    parts.push(fields([4, 0x04034b50], ...common), path, bytes);
    directory.push(fields([4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]), path);
    offset += 30 + path.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  if (offset + size > MOST_BYTES) throw new Error("More than 4 GB; save fewer masks at once.");
  const end = fields([4, 0x06054b50], [2, 0], [2, 0], [2, entries.length], [2, entries.length], [4, size], [4, offset], [2, 0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/** Little-endian numbers: [bytes, value] each. */
function fields(...numbers) {
  const out = new Uint8Array(numbers.reduce((sum, [length]) => sum + length, 0));
  const view = new DataView(out.buffer);
  let at = 0;
  for (const [length, value] of numbers) {
    if (length === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += length;
  }
  return out;
}
