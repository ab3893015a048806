// The worker for onnxruntime-node and onnxruntime-web: the same requests as worker.py, turns taken in here.

const QUIET = 4;
const TYPES = {
  "<f4": ["float32", Float32Array], "<f8": ["float64", Float64Array], "<f2": ["float16", Uint16Array],
  "<i8": ["int64", BigInt64Array], "<u8": ["uint64", BigUint64Array], "<i4": ["int32", Int32Array],
  "<u4": ["uint32", Uint32Array], "<i2": ["int16", Int16Array], "<u2": ["uint16", Uint16Array],
  "|i1": ["int8", Int8Array], "|u1": ["uint8", Uint8Array], "|b1": ["bool", Uint8Array],
};
const KERNEL = "_kernel_time";

export class Refusal extends Error {
  constructor(kind, why) {
    super(why);
    this.kind = kind;
  }
}

const firstLine = (error) => String(error?.message ?? error).trim().split("\n")[0].slice(0, 300);

export class Worker {
  // `backend`: of the runtime. `about`: what describe() says. `openProfile(options)`: sets them so that a profile is
  // written, and returns a function that ends it on a session and gives its text. `alive()`: called between calls.
  constructor(ort, backend, about, openProfile, alive) {
    Object.assign(this, { ort, backend, about, openProfile, alive, sessions: [], calls: [] });
  }

  async describe() {
    return this.about;
  }

  async prepare({ models, feeds, setting }) {
    const old = this.sessions;
    this.sessions = [];
    this.calls = [];
    await Promise.all(old.map((session) => session.release()));
    this.models = models;
    this.setting = setting;
    this.feeds = Object.fromEntries(Object.entries(feeds).map(([name, entry]) => [name, this.tensor(name, entry)]));
    for (const model of models) {
      const session = await this.open(model);
      this.sessions.push(session);
      this.calls.push(await this.boundCall(session));
      await this.alive();
    }
  }

  async run({ rounds, repeats, warm }) {
    const samples = [];
    for (let done = 0; done < rounds; done++) {
      const sample = new Array(this.calls.length);
      const order = [...this.calls.keys()];
      for (const i of done % 2 ? order.reverse() : order) {
        if (warm) await this.calls[i]();
        sample[i] = await secondsOf(this.calls[i], repeats[i]);
        await this.alive();
      }
      samples.push(sample);
    }
    return { seconds: samples, disturbed: samples.map(() => false) };
  }

  async outputs() {
    const found = [];
    for (const session of this.sessions) {
      const results = await session.run(this.feedsOf(session));
      found.push(Object.fromEntries(Object.entries(results).map(([name, tensor]) => [name, pack(tensor)])));
      await this.alive();
    }
    return found;
  }

  async profile({ models, rounds }) {
    const profiled = [];
    try {
      for (const i of models) {
        const options = this.options();
        const end = await this.openProfile(options);
        const session = await this.open(this.models[i], options);
        profiled.push({ session, end });
        profiled.at(-1).call = await this.boundCall(session);
        await this.alive();
      }
      return await this.readProfiles(models, profiled, rounds);
    } finally {
      await Promise.all(profiled.map(({ session }) => session.release()));
    }
  }

  async readProfiles(models, profiled, rounds) {
    const plain = [];
    for (let done = 0; done < rounds; done++) {
      const sample = [];
      for (const i of models) sample.push(await secondsOf(this.calls[i], 1));
      plain.push(sample);
      for (const { call } of profiled) {
        await call();
        await this.alive();
      }
    }
    const nodes = [];
    const seconds = [];
    for (const { session, end } of profiled) {
      const runs = readProfile(await end(session));
      nodes.push(runs.at(-1).map((entry) => entry.node));
      seconds.push(runs.slice(-rounds).map((run) => run.map((entry) => entry.seconds)));
    }
    return { plain, nodes, seconds, lost: plain.map((sample) => sample.map(() => 0)) };
  }

  options() {
    const { threads, blocked, config } = this.setting;
    return {
      executionProviders: [this.backend], intraOpNumThreads: threads, interOpNumThreads: 1,
      graphOptimizationLevel: blocked ? "all" : "extended", logSeverityLevel: QUIET, extra: nested(config),
    };
  }

  async open(model, options = this.options()) {
    try {
      return await this.ort.InferenceSession.create(typeof model === "string" ? model : bytes(model.data), options);
    } catch (error) {
      const name = typeof model === "string" ? `'${model}'` : "the model";
      throw new Refusal("model", `${this.about.runtime} cannot load ${name}: ${firstLine(error)}`);
    }
  }

  feedsOf(session) {
    const missing = session.inputNames.find((name) => !(name in this.feeds));
    if (missing !== undefined) throw new Refusal("model", `there is no value for input '${missing}'`);
    return Object.fromEntries(session.inputNames.map((name) => [name, this.feeds[name]]));
  }

  // Runs a session once into memory that is there.
  async boundCall(session) {
    const feeds = this.feedsOf(session);
    let outputs;
    try {
      outputs = await session.run(feeds);
    } catch (error) {
      throw new Refusal("model", `the model does not run: ${firstLine(error)}`);
    }
    return () => session.run(feeds, outputs);
  }

  tensor(name, { dtype, shape, data }) {
    const [type, array] = TYPES[dtype] ?? [];
    if (!type) throw new Refusal("model", `input '${name}' has a type that ${this.about.runtime} does not take: ${dtype}`);
    return new this.ort.Tensor(type, new array(bytes(data).buffer), shape);
  }
}

export async function answer(worker, request) {
  try {
    return { ok: (await worker[request.do](request)) ?? null };
  } catch (error) {
    if (error instanceof Refusal) return { refused: error.kind, why: error.message };
    return { refused: "runner", why: firstLine(error) };
  }
}

async function secondsOf(call, repeats) {
  const start = performance.now();
  for (let i = 0; i < repeats; i++) await call();
  return (performance.now() - start) / 1e3 / repeats;
}

// A duration is stored in whole microseconds, cut off: half of one is added.
function readProfile(text) {
  const events = JSON.parse(text);
  const starts = events.filter((e) => e.name === "model_run").map((e) => e.ts).sort((a, b) => a - b);
  const runs = starts.map(() => []);
  for (const { cat, name, ts, dur, args } of events) {
    if (cat !== "Node" || !name.endsWith(KERNEL)) continue;
    const node = [name.slice(0, -KERNEL.length), args.op_name ?? "", args.provider ?? ""];
    runs[starts.findLastIndex((start) => start <= ts)].push({ ts, node, seconds: (dur + 0.5) * 1e-6 });
  }
  return runs.map((run) => run.sort((a, b) => a.ts - b.ts));
}

// {"session.intra_op.allow_spinning": "0"} -> {session: {intra_op: {allow_spinning: "0"}}}
function nested(config) {
  const extra = {};
  for (const [key, value] of Object.entries(config)) {
    const path = key.split(".");
    const last = path.pop();
    path.reduce((level, part) => (level[part] ??= {}), extra)[last] = value;
  }
  return extra;
}

function bytes(text) {
  const raw = atob(text);
  const found = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
  return found;
}

function pack(tensor) {
  const dtype = Object.keys(TYPES).find((key) => TYPES[key][0] === tensor.type);
  const raw = new Uint8Array(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength);
  let text = "";
  for (let i = 0; i < raw.length; i += 32768) text += String.fromCharCode(...raw.subarray(i, i + 32768));
  return { dtype, shape: [...tensor.dims], data: btoa(text) };
}
