"use strict";

/** Undo hu_codec.encode_slice: codes of a slice, row by row. */
async function decodeSlice(text, rows, columns) {
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const codes = new Uint8Array(await new Response(stream).arrayBuffer());
  for (let row = 0, i = 0; row < rows; row++) {
    let left = 0, corner = 0;
    for (let column = 0; column < columns; column++, i++) {
      const above = row ? codes[i - columns] : 0;
      const low = Math.min(left, above), high = Math.max(left, above);
      const predicted = Math.min(Math.max(left + above - corner, low), high);
      corner = above;
      left = codes[i] = (codes[i] + predicted) & 255;
    }
  }
  return codes;
}

/** 256 colours, as four bytes of a pixel each, through evenly spaced ones. */
function colourTable(colours) {
  const anchors = colours.map((c) => [1, 3, 5].map((at) => parseInt(c.slice(at, at + 2), 16)));
  return Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (anchors.length - 1), low = Math.min(Math.floor(at), anchors.length - 2);
    return anchors[low].map((value, channel) => Math.round(value + (anchors[low + 1][channel] - value) * (at - low)));
  });
}
