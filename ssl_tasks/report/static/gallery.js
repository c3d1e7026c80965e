// The gallery of pseudo-labels: filters, order, pages, keys, and marks on every picture.

const PAGE = 40;
const SIDE = 96;
const state = { round: null, label: '', kept: '', near: false, flipped: false, mistaken: false, sort: 'review', page: 0 };
const flipped = one => known(one.before) && one.before !== one.label;
const labelOf = one => one.given ?? one.label;
const mistaken = ({ sample, opinion }) => known(sample.truth) && labelOf(opinion) !== sample.truth;
const SORTS = {
  review: ['most worth a look', (a, b) => b.opinion.score - a.opinion.score],
  unsure: ['least confident first', (a, b) => a.opinion.confidence - b.opinion.confidence],
  sure: ['most confident first', (a, b) => b.opinion.confidence - a.opinion.confidence],
  margin: ['smallest margin first', (a, b) => a.opinion.margin - b.opinion.margin],
  copies: ['most copies first', (a, b) => b.opinion.copies - a.opinion.copies],
  id: ['sample id', (a, b) => a.sample.id.localeCompare(b.sample.id, 'en', { numeric: true })],
};

function gallerySection() {
  const { samples, of, notes } = data.gallery;
  const rounds = [...new Set(samples.flatMap(one => one.opinions.map(opinion => opinion.round)))].sort((a, b) => a - b);
  state.round = rounds.at(-1);
  const grid = el('ul', { class: 'grid', id: 'gallery', 'aria-label': 'Pseudo-labels', keydown: onKey });
  const status = el('output', { 'aria-live': 'polite', id: 'gallery-status' });
  const [back, next] = [['← Previous', -1], ['Next →', 1]].map(([name, by]) => el('button', { type: 'button', click: () => turn(by) }, name));
  let shown = [];

  function found() {
    const rows = samples.flatMap(sample => {
      const opinion = sample.opinions.find(one => one.round === state.round);
      return opinion ? [{ sample, opinion }] : [];
    });
    return rows.filter(row => passes(row)).sort((a, b) => SORTS[state.sort][1](a, b) || a.sample.picture - b.sample.picture);
  }

  function refresh(focus = null) {
    shown = found();
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const rows = shown.slice(state.page * PAGE, (state.page + 1) * PAGE);
    grid.replaceChildren(...rows.map(row => el('li', {}, card(row))));
    status.textContent = shown.length ? `${plural(shown.length, 'picture')}, page ${state.page + 1} of ${pages}` : 'No picture matches these filters';
    [back.disabled, next.disabled] = [state.page === 0, state.page >= pages - 1];
    rove(0, focus !== null);
  }

  function turn(by) {
    state.page = Math.max(0, state.page + by);
    refresh();
    grid.scrollIntoView({ block: 'start' });
  }

  /** Tab reaches one card; the arrow keys move to the others. */
  function rove(at, focus) {
    const cards = [...grid.querySelectorAll('.card')];
    cards.forEach((one, number) => one.querySelectorAll('button').forEach(button => { button.tabIndex = number === at ? 0 : -1; }));
    if (focus) cards[at]?.querySelector('button').focus();
  }

  function onKey(event) {
    const cards = [...grid.querySelectorAll('.card')];
    const at = cards.findIndex(one => one.contains(document.activeElement));
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const wide = cards.filter(one => one.offsetTop === cards[0].offsetTop).length;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: wide, ArrowUp: -wide };
    const kinds = { y: '[data-kind=right]', x: '[data-kind=wrong]', c: '[data-kind=other]' };
    if (event.key in steps) rove(Math.max(0, Math.min(cards.length - 1, at + steps[event.key])), true);
    else if (event.key === 'PageDown' || event.key === 'PageUp') {
      turn(event.key === 'PageDown' ? 1 : -1);
      rove(0, true);
    } else if (event.key in kinds) cards[at].querySelector(kinds[event.key]).click();
    else return;
    event.preventDefault();
  }

  listeners.push(id => {
    for (const one of grid.querySelectorAll('.card')) if (one.dataset.sample === id) showMark(one);
  });
  const change = () => { state.page = 0; refresh(); };
  refresh();
  const few = samples.length < of ? `This gallery has ${count(samples.length)} of ${plural(of, 'pseudo-label')}: those most worth a look, those near a threshold, those that changed, and the most and least confident of every class.` : 'This gallery has all pseudo-labels.';
  return section('labels', 'Pseudo-labels',
    el('p', {}, `${few} Mark a picture as ✓ right, ✗ wrong or ≠ another class, and download the corrections. The next round uses them.`),
    notes.map(note => el('p', { class: 'note' }, visible(note))),
    el('p', { class: 'note wide-only' }, 'Keys for the selected picture: ', ...keys([['← → ↑ ↓', 'move'], ['Page Up / Page Down', 'change page'], ['y', 'right'], ['x', 'wrong'], ['c', 'another class'], ['Enter', 'larger']])),
    filters(rounds, change),
    el('div', { class: 'pager' }, status, back, next),
    grid,
    basket());
}

function keys(pairs) {
  return pairs.flatMap(([key, words], at) => [at ? ', ' : '', el('kbd', {}, key), ` ${words}`]);
}

function passes({ sample, opinion }) {
  const kept = {
    kept: known(opinion.given), left: !known(opinion.given), people: opinion.source === 'override' || opinion.rejected, marked: corrections.has(sample.id),
  };
  return (state.label === '' || labelOf(opinion) === state.label) && (state.kept === '' || kept[state.kept])
    && (!state.near || opinion.near) && (!state.flipped || flipped(opinion)) && (!state.mistaken || mistaken({ sample, opinion }));
}

function filters(rounds, change) {
  const choose = (name, label, options, read = value => value) => el('label', {}, label,
    el('select', { name, change: event => { state[name] = read(event.target.value); change(); } },
      options.map(([value, words]) => el('option', { value, selected: value === state[name] }, words))));
  const check = (name, words) => el('label', { class: 'check' },
    el('input', { type: 'checkbox', name, change: event => { state[name] = event.target.checked; change(); } }), words);
  const labels = [...new Set(data.gallery.samples.flatMap(one => one.opinions.map(labelOf)))].sort((a, b) => a - b);
  return el('form', { class: 'filters', 'aria-label': 'Filters', submit: event => event.preventDefault() },
    choose('round', 'Round', rounds.map(number => [number, `Round ${number}`]), Number),
    choose('label', 'Class', [['', 'all classes'], ...labels.map(label => [label, className(label)])], value => (value === '' ? '' : Number(value))),
    choose('kept', 'Show', [['', 'all'], ['kept', 'accepted'], ['left', 'rejected'], ['people', 'corrected'], ['marked', 'marked here']]),
    choose('sort', 'Order', Object.entries(SORTS).map(([name, [words]]) => [name, words])),
    check('near', 'near the threshold'), check('flipped', 'changed since the previous round'),
    data.gallery.samples.some(one => known(one.truth)) ? check('mistaken', 'differs from the ground truth') : null);
}

/** The picture of a sample, `side` pixels wide: a tile of a sprite, within a button or another element. */
function picture(sample, side, attributes = {}, tag = 'button') {
  const { tile, columns, sprites } = data.gallery.pictures;
  const sheet = sprites[Math.floor(sample.picture / columns ** 2)];
  if (!known(sample.picture) || !sheet) return el(tag, { type: 'button', class: 'picture none', ...attributes }, 'no image');
  const at = sample.picture % columns ** 2;
  const element = el(tag, { type: 'button', class: `picture ${tile <= 16 ? 'pixels' : ''}`, ...attributes });
  Object.assign(element.style, {
    width: `${side}px`, height: `${side}px`, backgroundImage: `url(${sheet})`, backgroundSize: `${columns * side}px auto`,
    backgroundPosition: `-${(at % columns) * side}px -${Math.floor(at / columns) * side}px`,
  });
  return element;
}

function card({ sample, opinion }) {
  const label = className(labelOf(opinion));
  const facts = [known(opinion.given) ? (opinion.copies > 1 ? `accepted, ${opinion.copies} copies` : 'accepted') : opinion.rejected ? 'rejected by a correction' : 'rejected'];
  if (opinion.source === 'override') facts.push('label set by a correction');
  if (opinion.near) facts.push('near the threshold');
  if (flipped(opinion)) facts.push(`was ${className(opinion.before)}`);
  if (mistaken({ sample, opinion })) facts.push(`ground truth: ${className(sample.truth)}`);
  const words = `${visible(sample.id)}: ${label}, ${percent(opinion.confidence)}, ${facts.join(', ')}`;
  const element = el('article', { class: 'card', 'data-sample': sample.id, 'data-label': data.classes[labelOf(opinion)], 'data-confidence': opinion.confidence },
    picture(sample, SIDE, { 'aria-label': words, title: visible(sample.id), click: () => openSample(sample, opinion) }),
    el('div', { class: 'label', title: label }, el('span', {}, percent(opinion.confidence)), label),
    chances(opinion.top.slice(0, 3)),
    el('div', { class: 'facts' }, facts.join(' · ')),
    el('div', { class: 'marks', role: 'group', 'aria-label': 'Your judgement' }, markButtons(sample, opinion)));
  showMark(element);
  return element;
}

function chances(top) {
  return el('ul', { class: 'chances', 'aria-label': 'Probabilities' }, top.map(([label, value]) => {
    const bar = el('i');
    bar.style.width = percent(value);
    return el('li', {}, el('span', { class: 'of' }, className(label)), el('span', { class: 'bar', 'aria-hidden': 'true' }, bar), el('span', { class: 'value' }, percent(value)));
  }));
}

function markButtons(sample, opinion) {
  const name = data.classes[labelOf(opinion)];
  const button = (kind, words, title, click, disabled) => el('button', { type: 'button', 'data-kind': kind, 'aria-pressed': 'false', 'aria-label': words, title, click, disabled },
    words[0], el('span', {}, words.slice(1)));
  return [
    button('right', '✓ right', 'the label is right', () => mark(sample.id, 'right', name)),
    button('wrong', '✗ wrong', 'the label is wrong; train without this picture', () => mark(sample.id, 'wrong', REJECT)),
    button('other', '≠ other', 'choose another class', () => openSample(sample, opinion, true)),
  ];
}

function showMark(element) {
  const said = corrections.get(element.dataset.sample);
  element.classList.toggle('marked', Boolean(said));
  for (const button of element.querySelectorAll('[data-kind]')) {
    const on = said?.kind === button.dataset.kind;
    button.setAttribute('aria-pressed', String(on));
    if (button.dataset.kind === 'other') button.lastChild.textContent = on ? ` ${shorten(visible(said.label), 8)}` : ' other';
  }
}

/** One sample, larger: its prediction in every round, and the choice of another class. */
function openSample(sample, opinion, choosing = false) {
  const dialog = el('dialog', { 'aria-label': `Sample ${visible(sample.id)}`, close: () => dialog.remove() });
  const choice = el('select', { id: 'other-class' }, el('option', { value: '' }, 'choose …'),
    data.classes.map((_, label) => el('option', { value: label }, className(label))));
  const said = corrections.get(sample.id);
  if (said?.kind === 'other') choice.value = String(data.classes.indexOf(said.label));
  const done = (kind, label) => { if (corrections.get(sample.id)?.label !== label) mark(sample.id, kind, label); dialog.close(); };
  choice.addEventListener('change', () => {
    if (choice.value !== '') done(Number(choice.value) === labelOf(opinion) ? 'right' : 'other', data.classes[Number(choice.value)]);
  });
  const columns = [
    { name: 'Round', show: one => String(one.round) },
    { name: 'Predicted', show: one => className(one.label) },
    { name: 'Confidence', number: true, show: one => percent(one.confidence) },
    { name: 'Agreement', number: true, show: one => percent(one.agreement, 0), title: 'share of views and ensemble members that agree' },
    { name: 'Selection', show: one => (known(one.given) ? `accepted as ${className(one.given)}, ${plural(one.copies, 'copy', 'copies')}${one.source === 'override' ? ' (correction)' : ''}` : one.rejected ? 'rejected by a correction' : 'rejected') },
  ];
  const large = picture(sample, 192, { type: null, role: 'img', 'aria-label': 'the picture' }, 'div');
  add(dialog, [
    el('div', { class: 'split' }, large, el('div', {},
      el('h3', {}, visible(sample.id)),
      sample.uri && sample.uri !== sample.id ? el('p', { class: 'note' }, visible(sample.uri)) : null,
      known(sample.truth) ? el('p', {}, `Ground truth: ${className(sample.truth)}`) : null,
      opinion.why ? el('p', {}, `Worth a look: ${opinion.why}.`) : null,
      chances(opinion.top))),
    table('Prediction and selection in each round', columns, sample.opinions),
    el('div', { class: 'row' },
      el('button', { type: 'button', autofocus: true, click: () => done('right', data.classes[labelOf(opinion)]) }, `✓ ${className(labelOf(opinion))} is right`),
      el('button', { type: 'button', click: () => done('wrong', REJECT) }, '✗ wrong: train without it'),
      el('label', {}, 'another class', choice),
      el('button', { type: 'button', click: () => { mark(sample.id); dialog.close(); } }, 'remove my mark'),
      el('button', { type: 'button', click: () => dialog.close() }, 'Close')),
  ]);
  document.body.append(dialog);
  dialog.showModal();
  if (choosing) choice.focus();
}
