// Portkey's server listens on every address and has no option for it; a benchmark listens on loopback only.
const net = require("node:net");
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (options, ...rest) {
  if (typeof options === "number") return listen.call(this, { port: options, host: "127.0.0.1" }, ...rest.filter((r) => typeof r === "function"));
  if (options && typeof options === "object" && options.port !== undefined) return listen.call(this, { ...options, host: "127.0.0.1" }, ...rest);
  return listen.call(this, options, ...rest);
};
