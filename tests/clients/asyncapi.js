// Reads a document with AsyncAPI's official parser: node asyncapi.js MODULES FILE prints, as JSON, what it has to say
// (`diagnostics`) and what it found (`channels`: address, message, key and payload as it stands in the file).

const [modules, file] = process.argv.slice(2);
const { Parser, fromFile } = require(`${modules}/node_modules/@asyncapi/parser`);
const { AvroSchemaParser } = require(`${modules}/node_modules/@asyncapi/avro-schema-parser`);

async function main() {
  const parser = new Parser();
  parser.registerSchemaParser(AvroSchemaParser());
  const { document, diagnostics } = await fromFile(parser, file).parse();
  const said = diagnostics.map(({ severity, code, message, path }) => ({ severity, code, message, path: path.join('.') }));
  const channels = {};
  for (const channel of document ? document.channels().all() : []) {
    const [message, ...others] = channel.messages().all();
    channels[channel.address()] = {
      message: message.name(),
      others: others.length,
      key: message.bindings().get('kafka')?.value().key?.type,
      format: message.schemaFormat(),
      payload: message.json().payload['x-parser-original-payload'],
    };
  }
  console.log(JSON.stringify({ diagnostics: said, channels }));
}

main();
