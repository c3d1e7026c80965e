// Figures by Observable Plot. They are redrawn when their width changes, and described in words.

const ACCENT = 'var(--accent)', INK = 'currentColor', MUTED = 'var(--muted)', LINE = 'var(--line)', PAPER = 'var(--raised)';
const SHAPES = {
  dot: { r: 4, shape: 'circle', fill: ACCENT },
  square: { r: 5.5, shape: 'square', fill: PAPER, stroke: INK },
  triangle: { r: 4, shape: 'triangle', fill: MUTED },
};

/** A figure. `draw` gets the width and returns Plot's options; `keys` are [drawing, words]. */
function chart(title, words, draw, keys = []) {
  const place = el('div', { class: 'plot' });
  let drawn = 0;
  const redraw = () => {
    const width = Math.floor(place.clientWidth);
    if (!width || width === drawn) return;
    drawn = width;
    const options = draw(width);
    const picture = charts.plot({ width, style: { background: 'none', fontFamily: 'inherit', fontSize: '12px', overflow: 'visible' }, ...options });
    picture.setAttribute('role', 'img');
    picture.setAttribute('aria-label', `${title}. ${words}`);
    place.replaceChildren(picture);
  };
  new ResizeObserver(redraw).observe(place);
  const legend = keys.length ? el('ul', { class: 'key' }, keys.map(([drawing, text]) => el('li', {}, drawing, text))) : null;
  return el('figure', {}, el('figcaption', {}, el('h3', {}, title), el('p', {}, words)), legend, place);
}

/** A small drawing for a key, made of the same marks as the chart's. */
function keyDot(shape) {
  return keyPlot([charts.dot([[7, 7]], { ...marker(SHAPES[shape]), x: d => d[0], y: d => d[1] })]);
}

function keyBar(filled) {
  const look = filled ? { fill: ACCENT } : { fill: PAPER, stroke: MUTED };
  return keyPlot([charts.rectY([0], { x1: 1, x2: 13, y1: 1, y2: 13, ...look })]);
}

function keyRule() {
  return keyPlot([charts.ruleX([7], { stroke: INK, strokeWidth: 2, strokeDasharray: '4,3' })]);
}

function keyPlot(marks) {
  const drawing = charts.plot({
    width: 14, height: 14, margin: 0, x: { domain: [0, 14], axis: null }, y: { domain: [0, 14], axis: null },
    style: { background: 'none' }, marks,
  });
  drawing.setAttribute('aria-hidden', 'true');
  return drawing;
}

function marker({ r, shape, fill, stroke }) {
  return { r, symbol: shape, fill, stroke: stroke ?? 'none', strokeWidth: 1.6 };
}

const percentAxis = { tickFormat: value => `${Number((100 * value).toFixed(2))}%` };
