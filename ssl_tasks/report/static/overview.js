// The first screen: accuracy, number of labels, why the run stopped, and its cost.

const predicted = () => data.rounds.filter(one => known(one.kept));
const bestPage = () => data.rounds.find(one => one.round === data.best_round) ?? data.rounds.at(-1);

function overview() {
  const { run } = data;
  const top = el('header', { class: 'top' },
    el('p', { class: 'kicker' }, 'selftrain report'),
    el('h1', {}, visible(run.id)),
    el('p', { class: 'lede' }, outcome()),
    el('p', {}, el('strong', {}, stopWord(run)), ' ', visible(run.stopped || '')),
    run.advice ? el('p', {}, visible(run.advice)) : null,
  );
  const started = new Date(run.created * 1000).toISOString().slice(0, 16).replace('T', ' ');
  const part = el('section', { id: 'summary', class: 'first', 'aria-labelledby': 'summary-title' },
    el('h2', { id: 'summary-title', class: 'quiet' }, 'Summary'), figures(),
    el('div', { class: 'columns' }, data.rounds.length ? accuracyChart(data.rounds) : null, data.stages.length ? costChart(data.stages) : null),
    data.rounds.length ? roundsTable() : el('p', {}, 'No model has been trained yet.'),
    data.stages.length ? fold('Each stage', table('Time of each stage in this run, and its computing time when it was computed', STAGE_TIMES, data.stages)) : null,
    el('p', { class: 'note' }, `Started ${started} UTC. `, known(run.finished) ? `The run took ${duration(run.finished - run.created)}. ` : '', known(run.link) ? ['In MLflow: ', link(run.link)] : null),
  );
  return [top, part];
}

function stopWord(run) {
  return { done: 'Why it stopped:', failed: 'It failed:', interrupted: 'It was interrupted:', crashed: 'It crashed:', waiting: 'It waits for approval.', running: 'It is still running.' }[run.state] ?? `State: ${visible(run.state)}.`;
}

function outcome() {
  const going = ['running', 'waiting'].includes(data.run.state), found = result(going);
  if (!going) return found;
  const now = data.stages.filter(one => one.state === 'running').map(one => visible(one.name));
  return `The run is not finished${now.length ? `; ${now.join(', ')} ${now.length === 1 ? 'is' : 'are'} running` : ''}. So far: ${found}`;
}

/** One sentence about the accuracy of the trained models. While the run is unfinished, more students may follow. */
function result(going) {
  const [first] = data.rounds, best = bestPage();
  const models = data.rounds.filter(one => one.architecture);
  if (!models.length) return 'There is no trained model yet.';
  const from = plural(first.labeled, 'labelled image');
  const split = best.test && first.test ? 'test' : 'validation';
  if (!best[split] || !first[split]) return `${plural(models.length, 'model')} trained on ${from}; ${going ? 'not evaluated yet' : 'no validation or test images to evaluate them on'}.`;
  const one = `One model, trained from ${from}: ${split} accuracy ${percent(first[split].accuracy)}.`;
  if (data.rounds.length === 1 && !going) return one;
  const students = data.rounds.filter(page => page.round > 0 && known(page[split]));
  if (!students.length) return `${one} No student has been evaluated${going ? ' yet' : ''}.`;
  const change = best[split].accuracy - first[split].accuracy;
  const verb = change > 0 ? 'rose' : change < 0 ? 'fell' : 'stayed';
  return best.round === 0
    ? `From ${from}, no student ${going ? 'is' : 'was'} better than the teacher on validation${going ? ` (${plural(students.length, 'student')} evaluated)` : ''}: ${split} accuracy ${percent(first[split].accuracy)}.`
    : `From ${from}, ${plural(best.round, 'round')} of pseudo-labels: ${split} accuracy ${verb} from ${percent(first[split].accuracy)} to ${percent(best[split].accuracy)}.`;
}

function figures() {
  const [first] = data.rounds, best = bestPage(), last = predicted().at(-1);
  const figure = (name, big, note) => el('div', {}, el('dt', {}, name), el('dd', { class: 'big' }, big), el('dd', {}, el('small', {}, note)));
  const gain = split => [first.round !== best.round && first[split] ? el('span', { class: 'from' }, `${percent(first[split].accuracy)} → `) : null, percent(best[split].accuracy)];
  const items = [];
  for (const split of ['test', 'validation']) {
    if (best?.[split]) items.push(figure(`${split === 'test' ? 'Test' : 'Validation'} accuracy`, gain(split), `${best.model}: ${range(best[split])} (95% interval), ${plural(best[split].count, 'image')}`));
  }
  if (first) items.push(figure('Labelled images', count(first.labeled), `${plural(data.classes.length, 'class', 'classes')}; ${count(data.counts.unlabeled)} unlabelled images`));
  if (last) items.push(figure(`Pseudo-labels, round ${last.round}`, count(last.kept), known(last.known) ? `accuracy ${percent(last.right / last.known)}, where the ground truth is known (${plural(last.known, 'image')})` : `accepted of ${plural(last.candidates, 'prediction')}; ${plural(last.copies, 'copy', 'copies')} in training`));
  const cost = data.stages.reduce((sum, one) => sum + (one.cost_seconds ?? 0), 0);
  const here = data.stages.reduce((sum, one) => sum + (one.state === 'reused' ? 0 : one.cost_seconds ?? 0), 0);
  items.push(figure('Computing time', duration(cost), here === cost ? 'all in this run' : here ? `${duration(here)} in this run, the rest reused` : 'all reused from earlier runs'));
  return el('dl', { class: 'figures' }, items);
}

/** Columns with the median accuracy of the last evaluations in training, if the recipe sets `median_of`. */
function medianColumns() {
  return ['test', 'validation'].filter(split => data.rounds.some(one => known(one.medians?.[split]))).map(split => (
    { name: `Median ${split}`, number: true, value: one => one.medians?.[split], show: one => (known(one.medians?.[split]) ? percent(one.medians[split]) : '–'), title: `of the last ${Math.max(...data.rounds.map(one => one.medians?.of ?? 0))} evaluations in training` }
  ));
}

function roundsTable() {
  const columns = [
    { name: 'Model', value: one => one.round, show: one => one.model.replaceAll(' ', '\u00a0') + (one.round === data.best_round ? '\u00a0★' : '') },
    { name: 'Test', number: true, value: one => one.test?.accuracy, show: one => scoreCell(one.test) },
    { name: 'Validation', number: true, value: one => one.validation?.accuracy, show: one => scoreCell(one.validation) },
    ...medianColumns(),
    { name: 'Pseudo-labels', number: true, value: one => one.kept, show: one => count(one.kept), title: 'accepted by the selection' },
    { name: 'With copies', number: true, value: one => one.copies, show: one => count(one.copies), title: 'pseudo-labelled images in training, copies included' },
    { name: 'Pseudo-label accuracy', number: true, value: one => (known(one.known) ? one.right / one.known : null), show: one => (known(one.known) ? percent(one.right / one.known) : '–'), title: 'where the ground truth is known' },
    { name: 'Gate', value: one => one.gate?.decision, show: one => (one.gate ? visible(one.gate.decision) : '–') },
    { name: 'Network', value: one => one.architecture, show: one => `${visible(one.architecture)}, ${visible(one.method)}` },
  ];
  return table('Teacher and students. ★: best on validation. Intervals: 95%', columns, data.rounds, { mark: one => (one.round === data.best_round ? 'best' : null) });
}

const STAGE_TIMES = [
  { name: 'Stage', value: one => one.name, show: one => visible(one.name) },
  { name: 'State', value: one => one.state },
  { name: 'Time in this run', number: true, value: one => one.wall_seconds, show: one => duration(one.wall_seconds) },
  { name: 'Computing time', number: true, value: one => one.cost_seconds, show: one => duration(one.cost_seconds) },
];
