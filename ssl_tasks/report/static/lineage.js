// The lineage graph: a node is a stage, an arrow an input; and all stages as a table.

const BOX = { width: 168, height: 50, across: 44, down: 40 };
const COLUMN = { dataset: 0, predict: 0, pretrain: 1, select: 1, given: 2, train: 2, evaluate: 3, gate: 4 };
const columnOf = one => (one.name === 'pretrain' ? 1 : COLUMN[one.stage] ?? 4);

function lineageSection() {
  const panel = el('div', { class: 'panel', 'aria-live': 'polite' }, 'Choose a stage to see its digest, settings and origin.');
  return section('lineage', 'Lineage',
    el('p', {}, 'Each box is a stage of the run, each arrow an input. Every stage reads the data set; only its arrows to the first stages are drawn.'),
    graph(panel), panel, fold('All stages as a table', stagesTable()));
}

/** Each round is a row, each kind of stage a column; several of a kind stand below each other. */
function placeNodes() {
  const cells = new Map();
  const places = new Map();
  const heights = new Map();
  for (const one of data.stages) {
    const key = `${one.round}/${columnOf(one)}`;
    cells.set(key, [...(cells.get(key) ?? []), one]);
    heights.set(one.round, Math.max(heights.get(one.round) ?? 0, cells.get(key).length));
  }
  let top = 0;
  for (const round of [...heights.keys()].sort((a, b) => a - b)) {
    for (const [key, group] of cells) {
      if (!key.startsWith(`${round}/`)) continue;
      group.forEach((one, at) => places.set(one.name, { x: columnOf(one) * (BOX.width + BOX.across), y: top + at * (BOX.height + 10), stage: one }));
    }
    top += heights.get(round) * (BOX.height + 10) - 10 + BOX.down;
  }
  return { places, height: top - BOX.down, width: 5 * BOX.width + 4 * BOX.across };
}

function graph(panel) {
  const { places, width, height } = placeNodes();
  const between = (from, to) => [...places.values()].some(one => one.y === from.y && one.x > from.x && one.x < to.x);
  const edges = data.stages.flatMap(one => one.inputs
    .filter(([role, from]) => places.has(from) && (role !== 'dataset' || one.round === 0 && one.stage !== 'evaluate'))
    .map(([role, from]) => ({ from, to: one.name, role })));
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('width', width);
  svg.setAttribute('height', height);
  svg.setAttribute('aria-hidden', 'true');
  svg.append(arrowhead());
  for (const edge of edges) {
    const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
    path.setAttribute('class', 'edge');
    path.setAttribute('marker-end', 'url(#head)');
    path.setAttribute('d', route(places.get(edge.from), places.get(edge.to), between));
    edge.path = path;
    svg.append(path);
  }
  const nodes = [...places.values()].map(({ x, y, stage }) => {
    const node = el('button', { type: 'button', class: 'node', 'aria-pressed': 'false', 'data-stage': stage.name, click: () => choose(node, stage) },
      el('b', {}, visible(stage.name)), el('small', {}, nodeNote(stage)));
    Object.assign(node.style, { left: `${x}px`, top: `${y}px`, width: `${BOX.width}px`, height: `${BOX.height}px` });
    return node;
  });
  function choose(node, stage) {
    nodes.forEach(one => one.setAttribute('aria-pressed', String(one === node)));
    edges.forEach(edge => edge.path.classList.toggle('on', edge.from === stage.name || edge.to === stage.name));
    panel.replaceChildren(...stagePanel(stage, choose, nodes));
  }
  const canvas = el('div', { class: 'canvas' }, svg, nodes);
  Object.assign(canvas.style, { width: `${width}px`, height: `${height + 24}px` });
  return el('div', { class: 'graph', tabindex: 0, role: 'region', 'aria-label': 'Lineage graph' }, canvas);
}

function arrowhead() {
  const make = (tag, attributes) => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const head = make('marker', { id: 'head', viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: 'auto', markerUnits: 'userSpaceOnUse' });
  head.append(make('path', { d: 'M0,0.5 L8,4 L0,7.5 z', fill: 'currentColor' }));
  return head;
}

/** From right side to left side along a row, from below to above between rows, around what stands between. */
function route(from, to, between) {
  const middle = place => place.y + BOX.height / 2;
  if (from.y === to.y && between(from, to)) {
    const dip = from.y + BOX.height + 16;
    const points = [[from.x + BOX.width - 30, from.y + BOX.height], [from.x + BOX.width - 10, dip], [from.x + BOX.width + 40, dip], [to.x - 20, dip], [to.x + 20, dip], [to.x + 36, to.y + BOX.height + 3], [to.x + 40, to.y + BOX.height]];
    return charts.line().curve(charts.curveBasis)(points);
  }
  if (to.x > from.x && to.stage.round === from.stage.round) {
    return charts.linkHorizontal()({ source: [from.x + BOX.width, middle(from)], target: [to.x, middle(to)] });
  }
  return charts.linkVertical()({ source: [from.x + BOX.width / 2, from.y + BOX.height], target: [to.x + BOX.width / 2, to.y] });
}

function nodeNote(stage) {
  const facts = [stage.state];
  if (known(stage.summary.validation_accuracy)) facts.push(`${percent(stage.summary.validation_accuracy)} val.`);
  else if (known(stage.summary.kept) && stage.stage === 'select') facts.push(`${count(stage.summary.kept)} accepted`);
  else if (known(stage.summary.decision)) facts.push(visible(stage.summary.decision));
  else if (known(stage.cost_seconds)) facts.push(duration(stage.cost_seconds));
  return facts.join(' · ');
}

function stagePanel(stage, choose, nodes) {
  const go = ([role, from]) => el('button', { type: 'button', click: () => {
    const node = nodes.find(one => one.dataset.stage === from);
    choose(node, data.stages.find(one => one.name === from));
    node.focus();
  } }, `${visible(role)}: ${visible(from)}`);
  const row = (name, ...value) => [el('dt', {}, name), el('dd', {}, value)];
  return [
    el('h3', {}, visible(stage.name)),
    el('dl', {},
      row('State', stage.state, stage.reason ? `: ${visible(stage.reason)}` : ''),
      row('Time', `${duration(stage.wall_seconds)} in this run, ${duration(stage.cost_seconds)} of computing`),
      row('Digest', el('span', { class: 'digest' }, stage.digest || '–')),
      row('Key', el('span', { class: 'digest' }, stage.key || '–')),
      row('Inputs', stage.inputs.length ? stage.inputs.map(go) : 'only the source of the data'),
      row('MLflow', stageLink(stage))),
    fold('Settings', el('pre', { tabindex: 0 }, visibleJson(stage.settings))),
    fold('Summary', el('pre', { tabindex: 0 }, visibleJson(stage.summary))),
  ];
}

const visibleJson = value => JSON.stringify(value, null, 1).split('\n').map(visible).join('\n');

/** A link to the stage's run in MLflow; without a known server, the search that finds it there. */
function stageLink({ link: address, digest }) {
  if (known(address)) return link(address);
  return data.run.tracked && digest ? el('code', {}, `tags."selftrain.digest" = '${digest}'`) : 'not tracked';
}

function stagesTable() {
  return table('Stages in the order of the run', [
    ...STAGE_TIMES,
    { name: 'Inputs', value: one => one.inputs.map(([, from]) => visible(from)).join(', ') || '–' },
    { name: 'Digest', show: one => el('span', { class: 'digest' }, one.digest.slice(0, 12) || '–') },
    { name: 'MLflow', show: one => stageLink(one) },
  ], data.stages);
}
