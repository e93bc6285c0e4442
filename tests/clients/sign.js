// Signs with npm's tls-sig-api-v2: node sign.js MODULES APP KEY IDENTIFIER EXPIRE [ROOM] prints the UserSig, with a
// room the private map key, which has a userbuf.

const [modules, app, key, identifier, expire, room] = process.argv.slice(2);
const { Api } = require(`${modules}/node_modules/tls-sig-api-v2`);

const api = new Api(Number(app), key);
if (room === undefined) {
  console.log(api.genUserSig(identifier, Number(expire)));
} else {
  console.log(api.genPrivateMapKey(identifier, Number(expire), Number(room), 255));
}
