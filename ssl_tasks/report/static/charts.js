// The report's charts.

const classMargin = () => Math.min(150, 24 + 6.6 * Math.max(...data.classes.map(name => Math.min(name.length, 22))));

/** The accuracy of each round with its interval. */
function accuracyChart(rounds) {
  const rows = ['validation', 'test'].flatMap((split, at) => rounds.filter(one => one[split]).map(one => (
    { at: rounds.indexOf(one) + (at ? 0.09 : -0.09), split, ...one[split] })));
  const best = rounds.find(one => one.round === data.best_round);
  const words = `95% intervals. Best on validation: ${best ? best.model : 'unknown'}.`;
  return chart('Accuracy by round', words, width => ({
    height: 280, marginLeft: 46, marginRight: 16,
    x: { domain: [-0.4, rounds.length - 0.6], ticks: rounds.map((_, at) => at), tickSize: 0, label: null,
      tickFormat: at => (at === 0 ? 'teacher' : width / rounds.length > 80 ? rounds[at]?.model : String(rounds[at]?.round)) },
    y: { ...percentAxis, grid: true, nice: true, label: 'accuracy', ticks: 5 },
    marks: [
      ...['validation', 'test'].map((split, at) => charts.lineY(rows.filter(row => row.split === split),
        { x: 'at', y: 'accuracy', stroke: at ? ACCENT : MUTED, strokeOpacity: 0.35 })),
      charts.ruleX(rows, { x: 'at', y1: 'low', y2: 'high', stroke: row => (row.split === 'test' ? ACCENT : MUTED), strokeWidth: 2 }),
      charts.dot(rows.filter(row => row.split === 'validation'), { x: 'at', y: 'accuracy', ...marker(SHAPES.square) }),
      charts.dot(rows.filter(row => row.split === 'test'), { x: 'at', y: 'accuracy', ...marker(SHAPES.dot) }),
    ],
    color: { type: 'identity' },
  }), [[keyDot('dot'), 'test'], [keyDot('square'), 'validation']]);
}

/** Class shares of the labelled images, of all predictions, and of the images in training. */
function balanceChart(page, most = 30) {
  const total = name => page.balance.reduce((sum, one) => sum + one[name], 0) || 1;
  const totals = { labeled: total('labeled'), candidates: total('candidates'), copies: total('copies') };
  const all = page.balance.map((one, label) => ({
    name: `${label} ${className(label)}`, label, before: one.labeled / totals.labeled,
    candidates: one.candidates / totals.candidates, after: one.copies / totals.copies,
  }));
  const changed = [...all].sort((a, b) => Math.abs(b.after - b.candidates) - Math.abs(a.after - a.candidates)).slice(0, most);
  const rows = all.filter(one => changed.includes(one));
  const words = all.length > most ? `The ${most} of ${all.length} classes that the selection changed most.` : 'Share of each class before and after the selection, copies included.';
  const mark = (key, shape) => charts.dot(rows, { y: 'label', x: key, ...marker(SHAPES[shape]) });
  return chart('Class balance', words, () => ({
    height: 46 + 20 * rows.length, marginLeft: classMargin(), marginTop: 26,
    x: { ...percentAxis, axis: 'top', grid: true, label: 'share of images', zero: true, ticks: 5 },
    y: { type: 'band', label: null, tickSize: 0, tickFormat: label => shorten(className(label), 22), domain: rows.map(one => one.label) },
    marks: [
      charts.link(rows, { y: 'label', x1: 'candidates', x2: 'after', stroke: MUTED, strokeWidth: 1.5 }),
      mark('before', 'square'), mark('candidates', 'triangle'), mark('after', 'dot'),
    ],
  }), [[keyDot('square'), 'labelled images'], [keyDot('triangle'), 'predicted'], [keyDot('dot'), 'accepted, with copies']]);
}

/** Confidences of accepted and rejected pseudo-labels, with the thresholds. `label` null is all classes. */
function histogramChart(page, label) {
  const width = page.histogram.bins;
  const [kept, left] = label === null ? [page.histogram.kept, page.histogram.left] : page.histogram.by_class[label] ?? [[], []];
  const bars = values => values.map((number, at) => ({ x1: at / width, x2: (at + 1) / width, y1: 0, y2: number })).filter(row => row.y2);
  const used = page.balance.filter((one, at) => known(one.threshold) && (label === null || at === label));
  const thresholds = [...new Set(used.map(one => one.threshold))].sort((a, b) => a - b);
  const said = thresholds.length === 0 ? 'no threshold'
    : thresholds.length === 1 ? `threshold ${decimal(thresholds[0], 2)}`
      : `thresholds by class ${decimal(thresholds[0], 2)}–${decimal(thresholds.at(-1), 2)}`;
  const sum = values => values.reduce((a, b) => a + b, 0);
  const words = `${count(sum(kept))} accepted, ${count(sum(left))} rejected; ${said}. The square-root scale keeps small bars visible.`;
  return chart('Confidence', words, () => ({
    height: 250, marginLeft: 52, marginTop: 22,
    marginBottom: 40,
    x: { domain: [0, 1], label: 'confidence', ticks: 6 }, y: { type: 'sqrt', grid: true, label: 'images', ticks: 5, tickFormat: value => count(value) },
    marks: [
      charts.rectY(bars(kept), { x1: 'x1', x2: 'x2', y1: 'y1', y2: 'y2', fill: ACCENT, insetLeft: 0.5, insetRight: 0.5 }),
      charts.rectY(bars(left), { x1: 'x1', x2: 'x2', y1: 'y1', y2: 'y2', fill: PAPER, fillOpacity: 0.55, stroke: INK, insetLeft: 2, insetRight: 2 }),
      charts.ruleY([0]),
      charts.ruleX(thresholds, { stroke: INK, strokeWidth: thresholds.length > 5 ? 0.8 : 1.6, strokeOpacity: thresholds.length > 5 ? 0.55 : 1, strokeDasharray: '4,3' }),
    ],
  }), [[keyBar(true), 'accepted'], [keyBar(false), 'rejected'], [keyRule(), 'threshold']]);
}

/** Confidence against accuracy on validation, without and with the fitted temperature. */
function reliabilityChart(reliability) {
  const { bins, tempered } = reliability;
  const largest = Math.max(...bins.map(one => one.count));
  const size = one => 3 + 6 * Math.sqrt(one.count / largest);
  const fitted = known(reliability.tempered_ece) ? `; with temperature ${decimal(reliability.temperature, 2)}: ${percent(reliability.tempered_ece)}` : '';
  const words = `On validation. Expected calibration error ${percent(reliability.ece)}${fitted}. Larger marks stand for more images.`;
  return chart('Reliability', words, width => ({
    height: Math.min(340, width * 0.8), marginLeft: 46, marginBottom: 40, marginTop: 26,
    x: { domain: [0, 1], ...percentAxis, label: 'confidence', ticks: 5 }, y: { domain: [0, 1], ...percentAxis, label: 'accuracy', grid: true, ticks: 5 },
    r: { type: 'identity' }, symbol: { type: 'identity' },
    marks: [
      charts.link([0], { x1: 0, y1: 0, x2: 1, y2: 1, stroke: MUTED, strokeDasharray: '4,3' }),
      charts.dot(tempered, { x: 'confidence', y: 'accuracy', r: size, fill: 'none', stroke: MUTED, symbol: 'square' }),
      charts.dot(bins, { x: 'confidence', y: 'accuracy', r: size, fill: ACCENT, stroke: PAPER }),
    ],
  }), [[keyDot('dot'), 'without temperature'], ...(tempered.length ? [[keyDot('square'), 'with temperature']] : []), [keyRule(), 'perfect']]);
}

/** A confusion matrix: shares of the true class, counts in the cells where they fit. */
function confusionChart(title, confusion, columns) {
  const classes = data.classes.map((_, label) => label);
  const totals = new Map();
  for (const [truth, , number] of confusion.cells) totals.set(truth, (totals.get(truth) ?? 0) + number);
  const cells = confusion.cells.map(([truth, said, number]) => ({ truth, said, number, share: number / totals.get(truth) }));
  const words = `${count(confusion.right)} of ${count(confusion.total)} correct (${percent(confusion.right / confusion.total)}). Rows: ground truth. Columns: ${columns}. Darker: a larger share of the row.`;
  const left = classMargin();
  return chart(title, words, width => {
    const side = Math.min(40, (width - left - 4) / classes.length);
    return {
      width: left + 4 + side * classes.length, height: 40 + side * classes.length, marginLeft: left, marginTop: 36, marginRight: 4, marginBottom: 4,
      x: { type: 'band', domain: classes, axis: 'top', label: `${columns} →`, tickSize: 0, tickFormat: label => shorten(className(label), Math.max(1, Math.floor(side / 8))) },
      y: { type: 'band', domain: classes, label: null, tickSize: 0, tickFormat: label => shorten(className(label), 22) },
      marks: [
        charts.cell(classes.flatMap(truth => classes.map(said => ({ truth, said }))), { x: 'said', y: 'truth', fill: 'var(--faint)', inset: 0.5 }),
        charts.cell(cells, { x: 'said', y: 'truth', fill: ACCENT, fillOpacity: cell => 0.06 + 0.84 * cell.share, inset: 0.5, title: cell => `${className(cell.truth)} → ${className(cell.said)}: ${cell.number}` }),
        ...(side > 21 ? [charts.text(cells, { x: 'said', y: 'truth', text: cell => (cell.number > 9999 ? `${Math.round(cell.number / 1000)}k` : String(cell.number)), fill: cell => (cell.share > 0.5 ? 'var(--on-accent)' : INK), fontSize: side < 30 ? 9 : 11 })] : []),
      ],
      color: { type: 'identity' },
    };
  });
}

/** Validation accuracy during training. */
function curveChart(page) {
  const rows = page.curve.map(([step, accuracy]) => ({ step, accuracy }));
  const last = rows.at(-1);
  return chart('Training', `Validation accuracy by step; ${percent(last.accuracy)} after ${plural(last.step, 'step')}.`, () => ({
    height: 250, marginLeft: 46, marginBottom: 40, x: { label: 'training step', ticks: 5 }, y: { ...percentAxis, grid: true, nice: true, label: 'validation accuracy', ticks: 5 },
    marks: [charts.lineY(rows, { x: 'step', y: 'accuracy', stroke: ACCENT, strokeWidth: 1.8 }), ...(rows.length < 40 ? [charts.dot(rows, { x: 'step', y: 'accuracy', r: 2.5, fill: ACCENT })] : [])],
  }));
}

/** Computing time of each kind of stage. */
function costChart(stages) {
  const kinds = new Map();
  for (const one of stages) {
    const entry = kinds.get(one.stage) ?? { stage: one.stage, here: 0, before: 0 };
    entry[one.state === 'reused' ? 'before' : 'here'] += one.cost_seconds ?? one.wall_seconds;
    kinds.set(one.stage, entry);
  }
  const rows = [...kinds.values()].filter(one => one.here + one.before > 0);
  const bars = rows.flatMap(one => [{ ...one, x1: 0, x2: one.here, fresh: true }, { ...one, x1: one.here, x2: one.here + one.before, fresh: false }]).filter(one => one.x2 > one.x1);
  return chart('Computing time by kind of stage', 'Time of the stages computed in this run, and of those reused from earlier runs.', () => ({
    height: 34 + 26 * rows.length, marginLeft: 66, marginRight: 70,
    x: { axis: null }, y: { type: 'band', domain: rows.map(one => one.stage), label: null, tickSize: 0 },
    marks: [
      charts.barX(bars.filter(one => one.fresh), { y: 'stage', x1: 'x1', x2: 'x2', fill: ACCENT, insetTop: 3, insetBottom: 3 }),
      charts.barX(bars.filter(one => !one.fresh), { y: 'stage', x1: 'x1', x2: 'x2', fill: PAPER, stroke: MUTED, insetTop: 3, insetBottom: 3 }),
      charts.text(rows, { y: 'stage', x: one => one.here + one.before, text: one => duration(one.here + one.before), textAnchor: 'start', dx: 6, fill: INK }),
    ],
  }), [[keyBar(true), 'computed in this run'], [keyBar(false), 'reused']]);
}
