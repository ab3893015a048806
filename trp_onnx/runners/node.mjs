// worker.mjs under Node: requests on stdin, answers on stdout. Its folder's node_modules holds onnxruntime-node.
// argv: folder of the packages.

import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { cpus, tmpdir } from "node:os";
import { basename, join } from "node:path";
import { createInterface } from "node:readline";
import { Worker, answer } from "./worker.mjs";

const require = createRequire(join(process.argv[2], "package.json"));
const ort = require("onnxruntime-node");
const { version } = require("onnxruntime-node/package.json");

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");
let last = Date.now();
const alive = () => {
  if (Date.now() - last > 1000) say({ alive: true });
  last = Date.now();
};

const openProfile = (options) => {
  const folder = mkdtempSync(join(tmpdir(), "trp-onnx-"));
  Object.assign(options, { enableProfiling: true, profileFilePrefix: join(folder, "p") });
  return async (session) => {
    session.endProfiling();
    const text = readFileSync(join(folder, readdirSync(folder)[0]), "utf8");
    rmSync(folder, { recursive: true });
    return text;
  };
};

const about = {
  machine: cpus()[0]?.model ?? process.arch, runtime: `onnxruntime-node ${version}`, host: `Node ${process.versions.node}`,
  providers: ["CPUExecutionProvider"], profiles: true,
};
const worker = new Worker(ort, "cpu", about, openProfile, alive);
const lines = createInterface({ input: process.stdin, crlfDelay: Infinity });
lines.on("close", () => {
  if (basename(tmpdir()).startsWith("trp-onnx-worker.")) rmSync(tmpdir(), { recursive: true, force: true });
  process.exit(0);
});
for await (const line of lines) say(await answer(worker, JSON.parse(line)));
