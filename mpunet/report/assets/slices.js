"use strict";

/** Decode a slice that hu_codec.encode_slice encoded. Returns its codes, row by row. */
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

/** Interpolate evenly spaced colours ("#rrggbb") to a table of 256 colours [red, green, blue]. */
function colourTable(colours) {
  const anchors = colours.map((c) => [1, 3, 5].map((at) => parseInt(c.slice(at, at + 2), 16)));
  return Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (anchors.length - 1), low = Math.min(Math.floor(at), anchors.length - 2);
    return anchors[low].map((value, channel) => Math.round(value + (anchors[low + 1][channel] - value) * (at - low)));
  });
}
