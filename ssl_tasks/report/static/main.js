// Assembles the page.

const parts = [...overview()];
if (data.rounds.length) parts.push(roundsSection());
if (data.gallery.samples.length) parts.push(gallerySection());
if (data.stages.length) parts.push(lineageSection());
const titles = parts.filter(one => one.id).map(one => [one.id, one.querySelector('h2').textContent]);
const contents = el('nav', { class: 'sections', 'aria-label': 'Sections' }, titles.map(([id, title]) => el('a', { href: `#${id}` }, title)));
parts.splice(1, 0, contents);
document.getElementById('report').append(...parts);
