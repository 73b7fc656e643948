// graphile-worker, on a Node.js of its own. It is asked and answers as probe.py says.
//
// Tuned with the settings of its page "Performance": concurrentJobs 24, maxPoolSize 25, localQueue.size 500,
// completeJobBatchDelay 0 and failJobBatchDelay 0. It deletes a job at its end, and so keeps no history.

import { EventEmitter } from "node:events";
import { createRequire } from "node:module";

const require = createRequire(process.execPath); // its packages lie beside this Node.js
const { Logger, makeWorkerUtils, run, runMigrations } = require("graphile-worker");
const { Client } = require("pg");

const DSN = process.env.BENCH_DSN;
const EXPECTED = Number(process.env.BENCH_EXPECTED ?? 0);
const BATCH = 10_000;
const TUNED = {
  concurrentJobs: 24,
  maxPoolSize: 25,
  localQueue: { size: 500 },
  completeJobBatchDelay: 0,
  failJobBatchDelay: 0,
};
const silent = new Logger(() => () => {});
const started = [];

class Lack extends Error {}

const say = (text) => process.stdout.write(`${text}\n`);
const now = () => (performance.timeOrigin + performance.now()) / 1000;
const sleep = (seconds) => new Promise((wake) => setTimeout(wake, seconds * 1000));

async function withUtils(use) {
  const utils = await makeWorkerUtils({ connectionString: DSN, logger: silent });
  try {
    return await use(utils);
  } finally {
    await utils.release();
  }
}

const tasks = {
  nothing: async () => {
    started.push(now());
    if (started.length === EXPECTED) say(`all ${EXPECTED}`);
  },
  sleeper: async () => {
    say(`started ${now()}`);
    await sleep(3600);
  },
};

async function install() {
  await runMigrations({ connectionString: DSN, logger: silent });
}

async function enqueue({ count, at = null, job = "nothing" }) {
  const runAt = at === null ? undefined : new Date(at * 1000);
  await withUtils(async (utils) => {
    for (let first = 0; first < count; first += BATCH) {
      const size = Math.min(BATCH, count - first);
      await utils.addJobs(Array.from({ length: size }, () => ({ identifier: job, payload: {}, runAt })));
    }
  });
}

// Inserts jobs of a far future. Finished jobs leave nothing behind.
async function far({ count }) {
  await enqueue({ count: 1, at: Date.UTC(2099, 0, 1) / 1000 });
  const client = new Client({ connectionString: DSN });
  await client.connect();
  await client.query(
    "insert into graphile_worker._private_jobs (task_id, run_at, payload)" +
      " select task_id, run_at, payload from graphile_worker._private_jobs, generate_series(2, $1)",
    [count],
  );
  await client.query("vacuum analyze graphile_worker._private_jobs");
  await client.end();
}

// Its crontab, which knows nothing finer than a minute.
function crontab({ kind, count = 1 }) {
  if (kind !== "far") throw new Lack("its schedules know no seconds");
  return Array.from({ length: count }, (_, number) => `0 0 1 1 * nothing ?id=bench_${number}`).join("\n");
}

async function work({ tuned, schedule = null, concurrent = null }) {
  const lines = schedule ? crontab(schedule) : "";
  const events = new EventEmitter();
  const listens = new Promise((resolve) => events.once("pool:listen:success", resolve));
  const chosen = { ...(tuned ? TUNED : {}), ...(concurrent ? { concurrentJobs: concurrent } : {}) };
  const runner = await run({
    preset: { worker: { connectionString: DSN, logger: silent, events, ...chosen } },
    taskList: tasks,
    crontab: lines,
    noHandleSignals: true,
  });
  const stop = new Promise((resolve) => process.once("SIGTERM", resolve));
  await Promise.race([stop, listens.then(() => sleep(0.2)).then(() => say("ready")).then(() => stop)]);
  await Promise.race([runner.stop(), sleep(5)]);
  return started;
}

async function produce({ count, pause, how = "enqueue" }) {
  if (how !== "enqueue") throw new Lack("schedules cannot be triggered");
  const client = new Client({ connectionString: DSN });
  await client.connect();
  const calls = [];
  await withUtils(async (utils) => {
    for (let number = 0; number < count; number++) {
      if (number % 2) {
        await client.query("begin");
        await client.query("select from graphile_worker.add_job('nothing')");
        calls.push([now(), true]);
        await client.query("commit");
      } else {
        calls.push([now(), false]);
        await utils.addJob("nothing", {});
      }
      await sleep(pause);
    }
  });
  await client.end();
  return calls;
}

const verbs = { install, enqueue, far, work, produce };

let answer;
try {
  answer = await verbs[process.argv[2]](JSON.parse(process.argv[3]));
} catch (error) {
  if (!(error instanceof Lack)) throw error;
  answer = { lack: error.message };
}
process.stdout.write(`${JSON.stringify(answer ?? null)}\n`, () => process.exit(0));
