// The corrections made on this page. They stay in memory and are saved as the CSV that `selftrain labels apply` reads.

// Words of `ssl_tasks/pseudo_labels/label_words.py`: a class whose name could mean something else is written with `class:`.
const REJECT = data.classes.some(name => name.includes('reject')) ? '(reject)' : 'reject';
const classWord = name => (/^\s*(class:|\(reject\)\s*$|reject\s*$)/.test(name) ? `class:${name}` : name);

// As in `ssl_tasks/csv_text.py`: a spreadsheet takes a text that begins like this for a formula.
const FORMULA = /^'*(?: *[=+\-@＝＋－＠]|[\t\r\n])/;

const corrections = new Map(); // sample id → {kind: right, wrong or other; label: the class's name}
const listeners = [];

function mark(id, kind, label) {
  const before = corrections.get(id);
  if (!kind || (before?.kind === kind && before.label === label)) corrections.delete(id);
  else corrections.set(id, { kind, label });
  listeners.forEach(listener => listener(id));
}

function csv() {
  const quote = text => `"${(FORMULA.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
  return ['sample_id,label', ...[...corrections].map(([id, { kind, label }]) => `${quote(id)},${quote(kind === 'wrong' ? REJECT : classWord(label))}`)].join('\n') + '\n';
}

function basket() {
  const status = el('strong', { role: 'status' });
  const area = el('textarea', { readonly: true, 'aria-label': 'Corrections as CSV', spellcheck: 'false', hidden: true });
  const said = el('span', { class: 'note', role: 'status' });
  const save = el('button', { type: 'button', class: 'main', id: 'download', click: download }, 'Download corrections');
  const text = el('button', { type: 'button', 'aria-expanded': 'false', click: () => toggle(area.hidden) }, 'Show as text');
  const copy = el('button', { type: 'button', click: copyText }, 'Copy');
  const clear = el('button', { type: 'button', click: () => [...corrections.keys()].forEach(id => mark(id)) }, 'Undo all');

  function download() {
    const address = URL.createObjectURL(new Blob([csv()], { type: 'text/csv' }));
    el('a', { href: address, download: 'corrections.csv' }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
    said.textContent = 'If no file was saved, downloads are blocked here: use Copy.';
  }

  async function copyText() {
    toggle(true);
    area.select();
    try {
      await navigator.clipboard.writeText(csv());
      said.textContent = 'Copied.';
    } catch { // a sandboxed frame has no clipboard of its own; a text area would turn a carriage return into a line feed
      document.addEventListener('copy', event => { event.clipboardData.setData('text/plain', csv()); event.preventDefault(); }, { once: true });
      said.textContent = document.execCommand('copy') ? 'Copied.' : 'Select the text and copy it.';
    }
  }

  function toggle(open) {
    area.hidden = !open;
    text.setAttribute('aria-expanded', String(open));
    text.textContent = open ? 'Hide text' : 'Show as text';
  }

  function update() {
    const kinds = [...corrections.values()].map(one => one.kind);
    const number = kind => kinds.filter(one => one === kind).length;
    status.textContent = corrections.size
      ? `${plural(corrections.size, 'correction')}: ${[['right', 'right'], ['wrong', 'wrong'], ['other', 'another class']].filter(([kind]) => number(kind)).map(([kind, words]) => `${number(kind)} ${words}`).join(', ')}`
      : 'No corrections yet';
    [save, copy, text, clear].forEach(button => { button.disabled = corrections.size === 0; });
    whole.classList.toggle('full', corrections.size > 0);
    area.value = csv();
    if (!corrections.size) toggle(false);
  }

  addEventListener('beforeunload', event => { if (corrections.size) event.preventDefault(); });
  const whole = el('div', { class: 'basket' }, el('div', { class: 'row' }, status, text, copy, clear, save), area,
    el('div', {}, el('small', {}, 'Then run ', el('code', {}, `selftrain labels apply ${visible(data.run.id)} corrections.csv`), '. '), said));
  listeners.push(update);
  update();
  return whole;
}
