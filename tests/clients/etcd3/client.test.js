// What a program does with etcd3, against the server at $ENDPOINT. Every test has a namespace of its own.
const { test, after } = require('node:test');
const assert = require('node:assert/strict');
const { once } = require('node:events');
const { Etcd3, EtcdLeaseInvalidError } = require('etcd3');

const client = new Etcd3({ hosts: process.env.ENDPOINT });
after(() => client.close());
const deadline = { timeout: 30_000 };
const space = (name) => client.namespace(`node/${name}/`);

test('values come back as strings, numbers, JSON and buffers', deadline, async () => {
  const kv = space('values');
  await kv.put('a').value('1');
  await kv.put('b').value(JSON.stringify({ x: [1] }));
  assert.equal(await kv.get('a').string(), '1');
  assert.equal(await kv.get('a').number(), 1);
  assert.deepEqual(await kv.get('b').json(), { x: [1] });
  assert.deepEqual(await kv.get('a').buffer(), Buffer.from('1'));
  assert.equal(await kv.get('none'), null);
});

test('ranges are sorted, limited, counted and read at a revision', deadline, async () => {
  const kv = space('ranges');
  const first = await kv.put('a').value('9').exec();
  for (const [key, value] of [['b', '8'], ['c', '7'], ['a', '6']]) await kv.put(key).value(value);
  assert.deepEqual(await kv.getAll().sort('Value', 'Ascend').limit(2).keys(), ['a', 'c']);
  assert.equal(await kv.getAll().count(), 3);
  assert.equal(await kv.get('a').revision(first.header.revision).string(), '9');
  assert.deepEqual(await kv.getAll().prefix('b').strings(), { b: '8' });
});

test('deleting returns what was there', deadline, async () => {
  const kv = space('deletes');
  await kv.put('a').value('1');
  const gone = await kv.delete().key('a').getPrevious();
  assert.equal(gone[0].value.toString(), '1');
  assert.equal((await kv.delete().all()).deleted, '0');
});

test('a transaction takes one branch', deadline, async () => {
  const kv = space('transactions');
  const create = () => kv.if('a', 'Create', '==', 0).then(kv.put('a').value('1')).else(kv.get('a')).commit();
  assert.equal((await create()).succeeded, true);
  const again = await create();
  assert.equal(again.succeeded, false);
  assert.equal(again.responses[0].response_range.kvs[0].value.toString(), '1');
});

test('a lease takes its keys along', deadline, async () => {
  const kv = space('leases');
  const lease = kv.lease(30);
  await lease.put('a').value('1');
  assert.equal(await kv.get('a').string(), '1');
  await lease.keepaliveOnce();
  await lease.revoke();
  assert.equal(await kv.get('a').string(), null);
  await assert.rejects(lease.keepaliveOnce(), EtcdLeaseInvalidError);
});

test('a watcher sees puts and deletes in order, and can be cancelled', deadline, async () => {
  const kv = space('watches');
  const watcher = await kv.watch().prefix('').withPreviousKV().create();
  const seen = [];
  const done = new Promise((resolve) => {
    watcher.on('put', (now, before) => seen.push(`put ${now.value} ${before ? before.value : '-'}`));
    watcher.on('delete', (_, before) => { seen.push(`delete ${before.value}`); resolve(); });
  });
  await kv.put('a').value('1');
  await kv.put('a').value('2');
  await kv.delete().key('a');
  await done;
  assert.deepEqual(seen, ['put 1 -', 'put 2 1', 'delete 2']);
  await watcher.cancel();
});

test('a watcher begins at an old revision', deadline, async () => {
  const kv = space('history');
  const first = await kv.put('a').value('1').exec();
  await kv.put('a').value('2');
  const watcher = kv.watch().key('a').startRevision(first.header.revision).watcher();
  const values = [];
  while (values.length < 2) {
    const [answer] = await once(watcher, 'data');
    values.push(...answer.events.map((event) => event.kv.value.toString()));
  }
  assert.deepEqual(values, ['1', '2']);
  await watcher.cancel();
});

test('a lock is held by one, and passed on', deadline, async () => {
  const kv = space('locks');
  let inside = 0;
  const enter = async () => {
    for (;;) {
      try {
        return await kv.lock('a').ttl(30).do(async () => {
          assert.equal(++inside, 1);
          await new Promise(setImmediate);
          inside -= 1;
          return 1;
        });
      } catch (error) {
        if (error.name !== 'EtcdLockFailedError' && error.constructor.name !== 'EtcdLockFailedError') throw error;
      }
    }
  };
  assert.equal((await Promise.all([enter(), enter(), enter()])).length, 3);
});

test('an election has one leader after the other', deadline, async () => {
  const election = space('elections').election('one', 30);
  const first = election.campaign('first');
  await once(first, 'elected');
  assert.equal(await election.leader(), 'first');
  const second = election.campaign('second');
  const elected = once(second, 'elected');
  await first.resign();
  await elected;
  assert.equal(await election.leader(), 'second');
  await second.resign();
});

test('software transactional memory counts without losses', deadline, async () => {
  const kv = space('stm');
  await kv.put('n').value(0);
  const add = () => kv.stm({ retries: 50 }).transact(async (tx) => tx.put('n').value((await tx.get('n').number()) + 1));
  await Promise.all(Array.from({ length: 8 }, add));
  assert.equal(await kv.get('n').number(), 8);
});

test('maintenance and members answer', deadline, async () => {
  const status = await client.maintenance.status();
  assert.notEqual(status.leader, '0');
  assert.equal((await client.cluster.memberList({})).members.length, 1);
  assert.deepEqual((await client.maintenance.alarm({})).alarms, []);
});
