// Elements, numbers and tables. Text from the data is set with textContent only, so it can never become markup.

const data = JSON.parse(document.getElementById('data').textContent);

/** An element with attributes (functions are listeners) and children (strings become text). */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? '' : value);
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
}

/** Shows control characters and characters that change the direction of text, which could disguise a name. */
function visible(text) {
  return String(text).replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g, one => `\\u${one.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

const known = value => value !== null && value !== undefined;
const count = value => (known(value) ? value.toLocaleString('en-US') : '–');
const percent = (value, digits = 1) => (known(value) ? `${(100 * value).toFixed(digits)}%` : '–');
const decimal = (value, digits = 3) => (known(value) ? value.toFixed(digits) : '–');
const range = score => `${percent(score.low)}–${percent(score.high)}`;
const className = label => (known(label) ? visible(data.classes[label] ?? `class ${label}`) : '–');
const shorten = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

function duration(seconds) {
  if (!known(seconds)) return '–';
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${Math.floor(seconds / 60)} min ${String(Math.round(seconds % 60) % 60).padStart(2, '0')} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, '0')} min`;
}

/** Accuracy with its interval, for a table's cell. */
function scoreCell(score) {
  return known(score) ? [percent(score.accuracy), ' ', el('span', { class: 'range' }, `(${range(score)})`)] : '–';
}

/**
 * A table whose columns sort. A column is {name, value: row → number or text, show: row → cell, number, title};
 * without `value` it does not sort.
 */
function table(caption, columns, rows, options = {}) {
  const body = el('tbody');
  const heads = columns.map(column => {
    const name = column.value ? el('button', { type: 'button', click: () => sort(column) }, column.name) : column.name;
    return el('th', { scope: 'col', class: column.number && 'number', title: column.title }, name);
  });
  const fill = ordered => body.replaceChildren(...ordered.map(row => el('tr', { class: options.mark?.(row) },
    columns.map((column, at) => el(at ? 'td' : 'th', { class: column.number ? 'number' : 'name', scope: !at && 'row' },
      column.show ? column.show(row) : String(column.value(row) ?? '–'))))));
  function sort(column) {
    const head = heads[columns.indexOf(column)];
    const first = column.number ? 'descending' : 'ascending';
    const other = { ascending: 'descending', descending: 'ascending' };
    const order = other[head.getAttribute('aria-sort')] ?? first;
    heads.forEach(one => one.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', order);
    fill(sorted(rows, column.value, order === 'descending'));
  }
  fill(rows);
  const whole = el('table', {}, el('caption', {}, caption), el('thead', {}, el('tr', {}, heads)), body);
  return el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': caption }, whole);
}

/** A sorted copy; unknown values come last in both orders. */
function sorted(rows, value, descending) {
  const compare = (a, b) => (typeof a === 'string' ? a.localeCompare(b, 'en', { numeric: true }) : a - b);
  return [...rows].sort((one, two) => {
    const [a, b] = [value(one), value(two)];
    if (!known(a) || !known(b)) return known(b) - known(a);
    return descending ? compare(b, a) : compare(a, b);
  });
}

/** A link if the address is http or https; otherwise text. */
function link(address) {
  return /^https?:\/\//i.test(address) ? el('a', { href: address, target: '_blank', rel: 'noopener noreferrer' }, visible(address)) : visible(address);
}

function section(id, title, ...children) {
  return el('section', { id, 'aria-labelledby': `${id}-title` }, el('h2', { id: `${id}-title` }, title), children);
}

function fold(summary, ...children) {
  return el('details', {}, el('summary', {}, summary), children);
}

/** A group of buttons, one of which is pressed. */
function segments(label, choices, chosen, onChoice) {
  const buttons = choices.map(([value, name]) => el('button', {
    type: 'button', 'aria-pressed': String(value === chosen),
    click: event => {
      buttons.forEach(one => one.setAttribute('aria-pressed', String(one === event.currentTarget)));
      onChoice(value);
    },
  }, name));
  return el('div', { class: 'segments', role: 'group', 'aria-label': label }, buttons);
}
