// What both programs share: the contract, loaded from the .proto files as they are. No generated code, and no
// channel options: those of @grpc/grpc-js by default are what the broker is built for.
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const PROTOS = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../../protos');

const definition = protoLoader.loadSync('kyogo/v1/broker.proto', {
  includeDirs: [PROTOS],
  keepCase: true,
  longs: Number, // offsets, fences and times stay below 2^53
  enums: String,
  defaults: true,
});
const { kyogo } = grpc.loadPackageDefinition(definition);

/** A client of the data plane at `address`, such as "127.0.0.1:7440". */
export function connect(address) {
  return new kyogo.v1.BrokerService(address, grpc.credentials.createInsecure());
}

/** Command line: QUEUE and the given options; `--server` falls back to KYOGO_URL, then to a broker on this machine. */
export function commandLine(usage, options) {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: { server: { type: 'string' }, ...options },
    });
    if (positionals.length !== 1) throw new Error('exactly one QUEUE is needed');
    const server = (values.server ?? process.env.KYOGO_URL ?? '127.0.0.1:7440').replace(/^kyogo:\/\//, '');
    return { ...values, server, queue: positionals[0] };
  } catch (error) {
    console.error(`${error.message}\nusage: ${usage}`);
    process.exit(2);
  }
}
