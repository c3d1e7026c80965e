// The page of a comparison: accuracy, cost and paired differences of runs, or of methods and label budgets.

const { rows, split } = data;
const isGrid = data.kind === 'methods';
rows.forEach((row, at) => { row.number = at + 1; });
const reference = rows[0];
const paired = rows.filter(row => known(row.difference));
const manyBudgets = isGrid && new Set(rows.map(row => row.labels)).size > 1;
const MOST_NAMED = 3;

/** A run by its name and the end of its id; a method with its labels per class where there are several budgets. */
function rowName(row) {
  if (!isGrid) return visible(row.run.replace(/-\d{8}-\d{6}-(?=[0-9a-f]{4}$)/, ' …'));
  return manyBudgets ? `${visible(row.method)} · ${count(row.labels)}` : visible(row.method);
}

const shortName = (row, most = 26) => `${row.number}  ${shorten(rowName(row), most)}`;
const NUMBER_ROOM = 38; // of a name's number, and between the name and the axis
const nameMargin = width => Math.min(width * 0.42, NUMBER_ROOM + 6.4 * Math.max(...rows.map(row => Math.min(rowName(row).length, 26))));
const lettersIn = width => Math.floor((nameMargin(width) - NUMBER_ROOM) / 6.4);
const points = (value, digits = 1) => (known(value) ? `${value > 0 ? '+' : ''}${(100 * value).toFixed(digits)}` : '–');
const probability = value => (known(value) ? (value < 0.001 ? '< 0.001' : value.toFixed(3)) : '–');
const significant = row => row.low > 0 || row.high < 0;

/** The ends of a bar: ± one standard deviation over seeds, or the 95% interval of one run; no bar for a single seed. */
function spread(row) {
  const [low, high, std] = ['low', 'high', 'std'].map(name => row[`${split}_${name}`]);
  if (known(std)) return [row[split] - std, row[split] + std];
  return known(low) ? [low, high] : [row[split], row[split]];
}

const bars = () => rows.filter(row => known(row[split])).map(row => ({ row, number: row.number, mean: row[split], from: spread(row)[0], to: spread(row)[1] }));

function band(width, shown) {
  const named = new Map(rows.map(row => [row.number, row]));
  return { type: 'band', label: null, tickSize: 0, domain: shown.map(row => row.number), tickFormat: at => shortName(named.get(at), lettersIn(width)) };
}

function accuracyBars() {
  const seeds = rows.flatMap(row => row.points.map(point => ({ number: row.number, value: point[split] }))).filter(one => known(one.value));
  const words = isGrid ? 'Mean over seeds ± one standard deviation; each dot is a seed.' + (manyBudgets ? ' The number after a method is its labels per class.' : '') : 'The round that is best on validation, with its 95% interval.';
  return chart(`${split === 'test' ? 'Test' : 'Validation'} accuracy`, words, width => ({
    height: 56 + 30 * rows.length, marginLeft: nameMargin(width), marginRight: 20, marginTop: 26,
    x: { ...percentAxis, axis: 'top', grid: true, nice: true, label: 'accuracy', ticks: width < 500 ? 3 : 6 }, y: band(width, rows),
    marks: [
      charts.ruleY(bars(), { y: 'number', x1: 'from', x2: 'to', stroke: ACCENT, strokeWidth: 2 }),
      ...(isGrid ? [
        charts.dot(seeds, { y: 'number', x: 'value', r: 4, fill: PAPER, fillOpacity: 0.6, stroke: INK }),
        charts.tickX(bars(), { y: 'number', x: 'mean', stroke: ACCENT, strokeWidth: 4, inset: 5 }),
      ] : [charts.dot(bars(), { y: 'number', x: 'mean', ...marker(SHAPES.dot) })]),
    ],
  }), isGrid ? [[keyTick(), 'mean'], [keyRing(), 'one seed']] : []);
}

function keyTick() {
  return keyPlot([charts.ruleX([7], { stroke: ACCENT, strokeWidth: 4 })]);
}

function keyRing() {
  return keyPlot([charts.dot([[7, 7]], { x: d => d[0], y: d => d[1], r: 4, fill: PAPER, stroke: INK })]);
}

function costChart() {
  const known_ = bars().filter(one => one.row.seconds > 0);
  const seconds = known_.map(one => one.row.seconds);
  const far = Math.max(...seconds) / Math.min(...seconds) > 20;
  return chart('Accuracy and cost', `Computing time of ${isGrid ? 'one run, mean over seeds' : 'the whole run'}${far ? ', on a logarithmic scale' : ''}. The numbers are those of the table. Up and to the left is better.`, () => ({
    height: 300, marginLeft: 46, marginRight: 36, marginBottom: 46, marginTop: 20,
    x: { type: far ? 'log' : 'linear', zero: !far, nice: true, ticks: 4, tickFormat: value => duration(value), label: 'computing time', grid: true },
    y: { ...percentAxis, grid: true, nice: true, label: 'accuracy', ticks: 5 },
    marks: [
      charts.ruleX(known_, { x: one => one.row.seconds, y1: 'from', y2: 'to', stroke: MUTED }),
      charts.dot(known_, { x: one => one.row.seconds, y: 'mean', r: 9, fill: PAPER, stroke: ACCENT, strokeWidth: 1.6 }),
      charts.text(known_, { x: one => one.row.seconds, y: 'mean', text: one => String(one.number), fill: INK, fontSize: 11 }),
    ],
  }));
}

function differenceChart() {
  const title = `Difference to ${isGrid ? visible(reference.method) : 'the first run'}, in points`;
  const words = `Difference in accuracy on the same ${split} images, with paired 95% bootstrap intervals; McNemar’s p-value on the right. A filled mark: the interval excludes 0.`;
  return chart(title, words, width => ({
    height: 56 + 30 * paired.length, marginLeft: nameMargin(width), marginRight: 74, marginTop: 26,
    x: { axis: 'top', grid: true, nice: true, label: 'points', ticks: 4, tickFormat: value => points(value, 0) }, y: band(width, paired),
    marks: [
      charts.ruleX([0], { stroke: INK, strokeDasharray: '4,3' }),
      charts.ruleY(paired, { y: 'number', x1: 'low', x2: 'high', stroke: ACCENT, strokeWidth: 2 }),
      charts.dot(paired, { y: 'number', x: 'difference', r: 4.5, fill: row => (significant(row) ? ACCENT : PAPER), stroke: ACCENT, strokeWidth: 1.6 }),
      charts.text(paired, { y: 'number', text: row => `p ${known(row.p) && row.p < 0.001 ? '' : '= '}${probability(row.p)}`, frameAnchor: 'right', dx: 70, textAnchor: 'end', fill: INK }),
    ],
    color: { type: 'identity' },
  }));
}

function accuracyCell(row, name) {
  const [low, high, std] = ['low', 'high', 'std'].map(part => row[`${name}_${part}`]);
  const more = known(std) ? ` ± ${(100 * std).toFixed(1)}` : known(low) ? ` (${percent(low)}–${percent(high)})` : '';
  return known(row[name]) ? [percent(row[name]), el('span', { class: 'range' }, more)] : '–';
}

function comparisonTable() {
  const number = (name, value, show, title) => ({ name, number: true, value, show, title });
  const columns = [
    number('#', row => row.number, row => String(row.number)),
    ...(isGrid
      ? [{ name: 'Method', value: row => visible(row.method) }, number('Labels', row => row.labels, row => count(row.labels), 'per class'), number('Seeds', row => row.seeds, row => count(row.seeds))]
      : [{ name: 'Run', value: row => rowName(row), show: row => el('span', { title: visible(row.run) }, rowName(row)) }, number('Best round', row => row.round, row => (row.round === 0 ? 'teacher' : String(row.round)), 'chosen on validation')]),
    number('Test', row => row.test, row => accuracyCell(row, 'test')),
    number('Validation', row => row.validation, row => accuracyCell(row, 'validation')),
    number('Time', row => row.seconds, row => duration(row.seconds), 'computing time'),
    number('Difference (points)', row => row.difference, row => (known(row.difference) ? [points(row.difference), el('span', { class: 'range' }, ` (${points(row.low)} … ${points(row.high)})`)] : '–'), 'to the first row, with the paired 95% bootstrap interval'),
    number('Gained / lost', row => (known(row.gains) ? row.gains - row.losses : null), row => `${count(row.gains)} / ${count(row.losses)}`, 'images that only this row classifies correctly, and images that only the first row does'),
    number('McNemar p', row => row.p, row => probability(row.p)),
    ...(isGrid ? [] : [{ name: 'Note', show: row => visible(row.note ?? '') }]),
  ];
  return table(`Compared with ${isGrid ? `${visible(reference.method)} with as many labels` : 'the first run'} on the same ${split} images`, columns, rows);
}

function runsTable() {
  const runs = rows.flatMap(row => row.points.map(point => ({ ...point, row })));
  return fold('Every run', table('The runs behind the means', [
    { name: 'Run', value: one => visible(one.run) },
    { name: 'Method', value: one => visible(one.row.method) },
    { name: 'Labels', number: true, value: one => one.row.labels, show: one => count(one.row.labels) },
    { name: 'Seed', number: true, value: one => one.seed, show: one => String(one.seed) },
    { name: 'Test', number: true, value: one => one.test, show: one => percent(one.test) },
    { name: 'Validation', number: true, value: one => one.validation, show: one => percent(one.validation) },
    { name: 'Time', number: true, value: one => one.seconds, show: one => duration(one.seconds) },
  ], runs));
}

/** The result in one sentence. */
function finding() {
  const name = isGrid ? visible(reference.method) : `the first run, ${rowName(reference)}`;
  const say = (words, chosen) => {
    if (!chosen.length) return '';
    const most = sorted(chosen, row => Math.abs(row.difference), true).slice(0, MOST_NAMED);
    const named = most.map(row => `${rowName(row)} (${points(row.difference)} points)`).join(', ');
    return `${words} than ${name}: ${named}${chosen.length > most.length ? ` and ${count(chosen.length - most.length)} more` : ''}. `;
  };
  const clear = paired.filter(significant);
  const rest = paired.length - clear.length;
  if (!paired.length) return 'No images could be compared.';
  return say('Better', clear.filter(row => row.difference > 0)) + say('Worse', clear.filter(row => row.difference < 0))
    + (rest ? `${rest === paired.length ? 'No' : `For ${count(rest)} more, no`} difference beyond chance.` : '');
}

const asked = Object.entries(data.asked).filter(([, value]) => value);
document.getElementById('report').append(
  el('header', { class: 'top' },
    el('p', { class: 'kicker' }, 'selftrain comparison'),
    el('h1', {}, visible(data.title)),
    el('p', { class: 'lede' }, finding())),
  el('section', { id: 'comparison', class: 'first', 'aria-label': 'Comparison' },
    el('div', { class: 'columns' }, rows.some(row => known(row[split])) ? accuracyBars() : null, paired.length ? differenceChart() : null, costChart()),
    comparisonTable(),
    isGrid ? runsTable() : null,
    el('p', { class: 'note' }, 'Intervals and tests hold for one comparison each: of twenty without a true difference, one is expected to look different by chance. ',
      isGrid ? 'A seed also determines the split; the images of all seeds are compared together.' : ''),
    fold('Settings of this comparison', el('dl', { class: 'asked' }, asked.map(([name, value]) => [el('dt', {}, name), el('dd', {}, visible(value))])))),
);
