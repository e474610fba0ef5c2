// Consumes a queue: prints every message as one JSON line, acks it, and leaves politely after --count or SIGTERM.
//
// The whole of what a consumer must do is here: attach, deliver, settle, heartbeat (level 1). With `--started` it
// also says when a handler begins, so that waiting in its buffer costs a message neither time nor an attempt.
import { setImmediate } from 'node:timers';
import { commandLine, connect } from './kyogo.js';

const options = commandLine('node consume.js QUEUE [--count N] [--prefetch N] [--started] [--server HOST:PORT]', {
  count: { type: 'string', default: '0' },
  prefetch: { type: 'string', default: '16' },
  started: { type: 'boolean', default: false },
});
const { server, queue, started } = options;
const count = Number(options.count);

/** Your work. Returning means ACK; throwing means RETRY. */
async function handle(message, delivery) {
  const { type, headers, content_type, key, id } = message;
  console.log(JSON.stringify({ ...delivery, type, headers, content_type, key, id, body: message.body.toString() }));
}

const broker = connect(server);
const stream = broker.Consume();
let buffer = []; // delivered, handler not begun
let settlements = []; // what the next frame carries
let handled = 0;
let leaving = false;
let running = false;
let beat;
let sequence = 0;
let echo = 0;

stream.write({
  attach: {
    subscriptions: [{ queue }],
    client: { name: 'example', version: '0.1.0', language: 'node' },
    capabilities: started ? ['started'] : [],
    prefetch: { messages: Number(options.prefetch) },
  },
});

stream.on('data', (frame) => {
  if (frame.attached) {
    beat = setInterval(heartbeat, frame.attached.heartbeat_interval_ms);
    console.error(`attached to ${queue} as ${frame.attached.consumer_id}`);
  }
  if (frame.heartbeat) echo = frame.heartbeat.sequence;
  for (const run of frame.deliveries) {
    run.messages.forEach((message, index) => {
      const fence = run.first_fence + index;
      const offset = run.first_offset + index;
      buffer.push({ message, delivery: { offset, fence, attempt: run.attempt, losses: run.losses } });
    });
  }
  for (const { first, last } of frame.revokes.flatMap((revoke) => revoke.ranges)) {
    buffer = buffer.filter(({ delivery }) => delivery.fence < first || delivery.fence > last); // now another's
  }
  for (const { range, status } of frame.settled) {
    if (status !== 'SETTLE_STATUS_OK') console.error(`fences ${range.first} to ${range.last}: ${status}`);
  }
  for (const error of frame.errors) console.error(`${error.code}: ${error.message}`);
  if (!running) work();
});

/** Runs one handler at a time; the outcomes of a turn go out as one frame. */
async function work() {
  running = true;
  while (buffer.length && !leaving) {
    const { message, delivery } = buffer.shift();
    const ranges = [{ first: delivery.fence, last: delivery.fence }];
    if (started) stream.write({ started: ranges });
    try {
      await handle(message, delivery);
      settle({ outcome: 'OUTCOME_ACK', ranges });
    } catch (error) {
      settle({ outcome: 'OUTCOME_RETRY', ranges, reason: error.message, error_type: error.name });
    }
    handled += 1;
    if (count && handled >= count) leave();
  }
  running = false;
}

function settle(settlement) {
  settlements.push(settlement);
  if (settlements.length === 1) setImmediate(flush);
}

function flush() {
  if (settlements.length) stream.write({ settlements: settlements.splice(0) });
}

function heartbeat() {
  sequence += 1;
  stream.write({ heartbeat: { sequence, echo, running: running ? 1 : 0, buffered: buffer.length } });
}

/** Leaves politely: what was settled before is answered, what was not begun goes back uncharged. */
function leave() {
  if (leaving) return;
  leaving = true;
  flush();
  stream.write({ detach: {} });
}

process.on('SIGTERM', leave);
process.on('SIGINT', leave);
stream.on('end', () => stream.end());
stream.on('error', (error) => {
  console.error(`the stream to ${server} ended: ${error.message}`);
  process.exitCode = 3;
});
stream.on('close', () => {
  clearInterval(beat);
  broker.close();
});
