// One round at a time: the accepted pseudo-labels, their reliability, and the decision of the gate.

const CHECKS = {
  selected: ['accepted pseudo-labels', 'at least', value => count(value)],
  drift: ['drift of class shares (total variation)', 'at most', value => decimal(value)],
  class_share: ['largest class among predictions', 'at most', value => percent(value)],
  p_value_worse: ['p-value that the student is worse (McNemar)', 'above', value => decimal(value)],
  gain: ['gain on validation', 'above', value => percent(value)],
};

function roundsSection() {
  const place = el('div', { 'aria-live': 'polite' });
  const show = number => place.replaceChildren(...roundPage(data.rounds.find(one => one.round === number)));
  const last = data.rounds.at(-1);
  const choices = data.rounds.map(one => [one.round, one.round === 0 ? 'Teacher' : `Round ${one.round}`]);
  show(last.round);
  return section('rounds', 'Rounds', segments('Round', choices, last.round, show), place);
}

function roundPage(page) {
  const labels = [
    page.balance.length ? balanceChart(page) : null,
    page.histogram ? histogram(page) : null,
  ];
  const model = [
    page.reliability ? reliabilityChart(page.reliability) : null,
    page.curve.length > 1 ? curveChart(page) : null,
  ];
  return [
    el('p', {}, story(page)),
    page.warnings.length ? el('ul', {}, page.warnings.map(text => el('li', {}, 'Note: ', visible(text)))) : null,
    page.gate ? gate(page.gate) : null,
    el('div', { class: 'columns' }, labels),
    page.balance.length ? fold('Numbers by class', balanceTable(page)) : null,
    el('div', { class: 'columns' }, model),
    el('div', { class: 'columns' },
      page.confusion ? confusion('Confusion of the model on validation', page.confusion, 'predicted') : null,
      page.label_confusion ? confusion('Confusion of the pseudo-labels', page.label_confusion, 'pseudo-label') : null),
    page.flips ? flips(page) : null,
  ].filter(known);
}

function story(page) {
  if (!known(page.candidates)) return `The ${page.model} was trained on ${plural(page.labeled, 'labelled image')} (${visible(page.method)}, ${visible(page.architecture)}).`;
  const parts = [`The ${page.round === 1 ? 'teacher' : `student of round ${page.round - 1}`} predicted ${plural(page.candidates, 'image')}`];
  if (known(page.kept)) parts.push(`; ${plural(page.kept, 'pseudo-label was', 'pseudo-labels were')} accepted (${plural(page.copies, 'image')} in training, copies included)`);
  if (known(page.known)) parts.push(`, with an accuracy of ${percent(page.right / page.known)} where the ground truth is known`);
  parts.push('.');
  if (page.overrides || page.rejected) parts.push(` Corrections set ${plural(page.overrides, 'label')} and rejected ${count(page.rejected)}.`);
  if (page.unmatched_corrections) parts.push(` ${plural(page.unmatched_corrections, 'correction')} ${page.unmatched_corrections === 1 ? 'was' : 'were'} ignored: the image or the class no longer exists, or the image has changed.`);
  if (page.unreadable) parts.push(` ${plural(page.unreadable, 'image')} could not be read.`);
  return parts.join('');
}

function gate({ decision, reason, checks, compared }) {
  const words = el('div', { class: `verdict ${decision === 'stop' ? 'stop' : ''}` },
    el('strong', {}, `Gate: ${visible(decision)}`), el('br'), visible(reason));
  const rows = checks.map(one => ({ ...one, words: CHECKS[one.name] ?? [one.name, 'limit', value => decimal(value)] }));
  const columns = [
    { name: 'Check', show: one => one.words[0] },
    { name: 'Found', number: true, show: one => one.words[2](one.found) },
    { name: 'Expected', number: true, show: one => `${one.words[1]} ${one.words[2](one.limit)}` },
    { name: 'Verdict', show: one => (one.passed ? '✓ passed' : '✗ failed') },
  ];
  const paired = compared?.count ? el('p', { class: 'note' },
    `On the same ${plural(compared.count, 'validation image')} the student gained ${count(compared.mcnemar.gains)} and lost ${count(compared.mcnemar.losses)}; `,
    `difference ${percent(compared.difference)} (95% interval ${percent(compared.difference_interval?.low)} to ${percent(compared.difference_interval?.high)}).`) : null;
  return el('div', {}, words, fold('Checks of the gate', table('Checks of the gate', columns, rows), paired));
}

function histogram(page) {
  const place = el('div', {}, histogramChart(page, null));
  const labels = Object.keys(page.histogram.by_class).map(Number);
  if (labels.length < 2) return place;
  const choose = el('select', { change: event => place.replaceChildren(histogramChart(page, event.target.value === '' ? null : Number(event.target.value))) },
    el('option', { value: '' }, 'all classes'), labels.map(label => el('option', { value: label }, className(label))));
  return el('div', {}, place, el('label', { class: 'note' }, 'Predicted class ', choose));
}

function balanceTable(page) {
  const rows = page.balance.map((one, label) => ({ ...one, label }));
  const columns = [
    { name: 'Class', value: one => className(one.label) },
    { name: 'Labelled', number: true, value: one => one.labeled, show: one => count(one.labeled) },
    { name: 'Predicted', number: true, value: one => one.candidates, show: one => count(one.candidates) },
    { name: 'Threshold', number: true, value: one => one.threshold, show: one => (known(one.threshold) ? decimal(one.threshold, 3) : 'none') },
    { name: 'Accepted', number: true, value: one => one.kept, show: one => count(one.kept) },
    { name: 'With copies', number: true, value: one => one.copies, show: one => count(one.copies), title: 'images in training, copies included' },
    { name: 'Corrections', number: true, value: one => one.overrides, show: one => count(one.overrides) },
    { name: 'Mean confidence', number: true, value: one => one.mean_confidence, show: one => percent(one.mean_confidence) },
    { name: 'Estimated accuracy', number: true, value: one => one.estimated_precision, show: one => (known(one.estimated_precision) ? `${percent(one.estimated_precision)} (≥ ${percent(one.precision_bound)})` : '–'), title: 'estimated on validation images, with its lower bound' },
    { name: 'Pseudo-label accuracy', number: true, value: one => (known(one.known) ? one.right / one.known : null), show: one => (known(one.known) ? percent(one.right / one.known) : '–'), title: 'where the ground truth is known' },
  ];
  return table('Classes before and after the selection', columns, rows);
}

const MOST_IN_MATRIX = 30;

function confusion(title, matrix, columns) {
  const wrong = matrix.cells.filter(([truth, said]) => truth !== said);
  const pairs = table(`${title}: the most frequent mistakes`, [
    { name: 'Ground truth', value: ([truth]) => className(truth) },
    { name: columns === 'pseudo-label' ? 'Pseudo-label' : 'Predicted', value: ([, said]) => className(said) },
    { name: 'Images', number: true, value: ([, , number]) => number, show: ([, , number]) => count(number) },
  ], wrong.slice(0, 200));
  const small = data.classes.length <= MOST_IN_MATRIX;
  const words = `${count(matrix.right)} of ${count(matrix.total)} correct (${percent(matrix.right / matrix.total)}). ${matrix.complete ? '' : 'The rarest mistakes are left out.'}`;
  return small
    ? el('div', {}, confusionChart(title, matrix, columns), wrong.length ? fold('Most frequent mistakes', pairs) : null)
    : el('div', {}, el('h3', {}, title), el('p', { class: 'note' }, words), pairs);
}

function flips(page) {
  const { flipped, compared, kept, pairs } = page.flips;
  const columns = [
    { name: 'Before', value: ([from]) => className(from) },
    { name: 'Now', value: ([, to]) => className(to) },
    { name: 'Images', number: true, value: ([, , images]) => images, show: ([, , images]) => count(images) },
    { name: 'Of these accepted', number: true, value: ([, , , of]) => of, show: ([, , , of]) => count(of) },
  ];
  return el('div', {}, el('h3', {}, 'Changes since the previous round'),
    el('p', {}, `The predicted class of ${count(flipped)} of ${plural(compared, 'image')} changed (${percent(compared ? flipped / compared : null)}); ${count(kept)} of these ${kept === 1 ? 'was' : 'were'} accepted.`),
    pairs.length ? fold('Changes by class', table('Changes of the predicted class, the most frequent first', columns, pairs)) : null);
}
