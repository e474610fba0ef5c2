// Publishes every line of standard input as one message, over one pipelined stream.
import readline from 'node:readline';
import { randomUUID } from 'node:crypto';
import { commandLine, connect } from './kyogo.js';

const MESSAGES_PER_REQUEST = 256; // the frame, not the message, is what costs
const REQUESTS_WAITING_MAX = 16; // unanswered ones; more would only sit in buffers

const { server, queue, type, header } = commandLine(
  'node publish.js QUEUE [--type TYPE] [--header NAME=VALUE]... [--server HOST:PORT] < lines',
  { type: { type: 'string', default: '' }, header: { type: 'string', multiple: true, default: [] } },
);
const headers = Object.fromEntries(header.map((pair) => [pair.split('=', 1)[0], pair.slice(pair.indexOf('=') + 1)]));

const broker = connect(server);
const stream = broker.PublishStream();
const producer_id = randomUUID(); // makes a resend of the same request_id recognisable
let request_id = 0;
let waiting = 0;
let stored = 0;
let wake = () => {};

stream.on('data', (answer) => {
  waiting -= 1;
  if (answer.error) {
    console.error(`${answer.error.code}: ${answer.error.message}`);
    process.exitCode = 1;
  }
  for (const run of answer.offsets) stored += run.count; // answered: durable
  wake();
});
const ended = new Promise((resolve, reject) => {
  stream.on('end', resolve);
  stream.on('error', reject);
});

async function send(messages) {
  while (waiting >= REQUESTS_WAITING_MAX) await Promise.race([ended, new Promise((resolve) => { wake = resolve; })]);
  waiting += 1;
  request_id += 1;
  stream.write({ destination: queue, request_id, producer_id, messages });
}

try {
  let messages = [];
  for await (const line of readline.createInterface({ input: process.stdin })) {
    messages.push({ body: Buffer.from(line), content_type: 'text/plain', type, headers });
    if (messages.length === MESSAGES_PER_REQUEST) await send(messages.splice(0));
  }
  if (messages.length) await send(messages);
  stream.end(); // a half-close: everything sent is answered, then the stream ends
  await ended;
  console.log(JSON.stringify({ stored }));
} catch (error) {
  console.error(`publishing to ${server} failed: ${error.message}`);
  process.exitCode = 3;
}
broker.close();
