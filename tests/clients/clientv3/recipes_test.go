// Package clientv3 uses etcd's own Go client and its concurrency recipes against the server at $ENDPOINT.
//
// Every test has a prefix of its own, so that they run beside each other.
package clientv3

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/namespace"
)

const deadline = 30 * time.Second

func connect(t *testing.T) (*clientv3.Client, context.Context) {
	t.Helper()
	t.Parallel()
	endpoint := os.Getenv("ENDPOINT")
	if endpoint == "" {
		t.Fatal("ENDPOINT names no server; scripts/foreign-clients starts one")
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second})
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(func() { cancel(); client.Close() })
	return client, ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func key(t *testing.T, name string) string { return "go/" + t.Name() + "/" + name }

func TestPutGetDeleteWithPrevious(t *testing.T) {
	client, ctx := connect(t)
	first, err := client.Put(ctx, key(t, "a"), "1")
	must(t, err)
	second, err := client.Put(ctx, key(t, "a"), "2", clientv3.WithPrevKV())
	must(t, err)
	if string(second.PrevKv.Value) != "1" || second.PrevKv.ModRevision != first.Header.Revision {
		t.Fatalf("previous: %v", second.PrevKv)
	}
	old, err := client.Get(ctx, key(t, "a"), clientv3.WithRev(first.Header.Revision))
	must(t, err)
	if old.Count != 1 || string(old.Kvs[0].Value) != "1" {
		t.Fatalf("at revision %d: %v", first.Header.Revision, old)
	}
	gone, err := client.Delete(ctx, key(t, ""), clientv3.WithPrefix(), clientv3.WithPrevKV())
	must(t, err)
	if gone.Deleted != 1 || len(gone.PrevKvs) != 1 {
		t.Fatalf("deleted: %v", gone)
	}
}

func TestRangesSortAndPage(t *testing.T) {
	client, ctx := connect(t)
	for _, n := range []int{3, 1, 4, 2, 5} {
		_, err := client.Put(ctx, key(t, strconv.Itoa(n)), strconv.Itoa(9-n))
		must(t, err)
	}
	byValue, err := client.Get(ctx, key(t, ""), clientv3.WithPrefix(), clientv3.WithLimit(2),
		clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend))
	must(t, err)
	if !byValue.More || byValue.Count != 5 || string(byValue.Kvs[0].Key) != key(t, "5") {
		t.Fatalf("by value: %v", byValue)
	}
	last, err := client.Get(ctx, key(t, ""), clientv3.WithLastCreate()...)
	must(t, err)
	if string(last.Kvs[0].Key) != key(t, "5") {
		t.Fatalf("created last: %v", last)
	}
}

func TestTransactionTakesOneBranch(t *testing.T) {
	client, ctx := connect(t)
	create := func() *clientv3.TxnResponse {
		answer, err := client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key(t, "a")), "=", 0)).
			Then(clientv3.OpPut(key(t, "a"), "1")).Else(clientv3.OpGet(key(t, "a"))).Commit()
		must(t, err)
		return answer
	}
	if !create().Succeeded {
		t.Fatal("not created")
	}
	again := create()
	if again.Succeeded || string(again.Responses[0].GetResponseRange().Kvs[0].Value) != "1" {
		t.Fatalf("created twice: %v", again)
	}
	_, err := client.Txn(ctx).Then(clientv3.OpPut(key(t, "b"), "1"), clientv3.OpPut(key(t, "b"), "2")).Commit()
	if !errors.Is(err, rpctypes.ErrDuplicateKey) {
		t.Fatalf("a key put twice: %v", err)
	}
}

func TestErrorsAreTyped(t *testing.T) {
	client, ctx := connect(t)
	now, err := client.Put(ctx, key(t, "a"), "1")
	must(t, err)
	_, future := client.Get(ctx, key(t, "a"), clientv3.WithRev(now.Header.Revision+1_000_000))
	_, empty := client.Get(ctx, "")
	_, lease := client.Put(ctx, key(t, "a"), "1", clientv3.WithLease(123456789))
	_, revoke := client.Revoke(ctx, 123456789)
	_, large := client.Put(ctx, key(t, "a"), string(make([]byte, 1_600_000)))
	for name, pair := range map[string][2]error{
		"future": {future, rpctypes.ErrFutureRev}, "empty": {empty, rpctypes.ErrEmptyKey},
		"lease": {lease, rpctypes.ErrLeaseNotFound}, "revoke": {revoke, rpctypes.ErrLeaseNotFound},
		"large": {large, rpctypes.ErrRequestTooLarge},
	} {
		if !errors.Is(pair[0], pair[1]) {
			t.Errorf("%s: %v", name, pair[0])
		}
	}
}

func TestWatchGoesOnFromAnOldRevision(t *testing.T) {
	client, ctx := connect(t)
	first, err := client.Put(ctx, key(t, "a"), "1")
	must(t, err)
	_, err = client.Put(ctx, key(t, "a"), "2")
	must(t, err)
	events := client.Watch(ctx, key(t, ""), clientv3.WithPrefix(), clientv3.WithRev(first.Header.Revision), clientv3.WithPrevKV())
	_, err = client.Delete(ctx, key(t, "a"))
	must(t, err)
	var seen []string
	for len(seen) < 3 {
		answer := <-events
		must(t, answer.Err())
		for _, event := range answer.Events {
			seen = append(seen, fmt.Sprint(event.Type, string(event.Kv.Value), event.PrevKv != nil))
		}
	}
	if fmt.Sprint(seen) != "[PUT 1 false PUT 2 true DELETE  true]" && fmt.Sprint(seen) != "[PUT1false PUT2true DELETEtrue]" {
		t.Fatalf("%q", seen)
	}
}

func TestProgressIsToldWhenAskedFor(t *testing.T) {
	client, ctx := connect(t)
	events := client.Watch(ctx, key(t, "quiet"))
	now, err := client.Put(ctx, key(t, "other"), "1")
	must(t, err)
	asked := time.NewTicker(50 * time.Millisecond)
	defer asked.Stop()
	for {
		select {
		case <-asked.C:
			must(t, client.RequestProgress(ctx))
		case answer, open := <-events:
			if !open {
				t.Fatal("the watch ended")
			}
			if answer.IsProgressNotify() && answer.Header.Revision >= now.Header.Revision {
				return
			}
		}
	}
}

func TestWatchOfACompactedRevisionSaysSo(t *testing.T) {
	client, ctx := connect(t)
	var at int64
	for range 3 {
		answer, err := client.Put(ctx, key(t, "a"), "1")
		must(t, err)
		at = answer.Header.Revision
	}
	if _, err := client.Compact(ctx, at); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		t.Fatal(err)
	}
	answer := <-client.Watch(ctx, key(t, "a"), clientv3.WithRev(1))
	if answer.CompactRevision < at || !errors.Is(answer.Err(), rpctypes.ErrCompacted) {
		t.Fatalf("%v %v", answer, answer.Err())
	}
}

func TestLeaseEndsWithItsKeys(t *testing.T) {
	client, ctx := connect(t)
	lease, err := client.Grant(ctx, 2)
	must(t, err)
	_, err = client.Put(ctx, key(t, "a"), "1", clientv3.WithLease(lease.ID))
	must(t, err)
	left, err := client.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
	must(t, err)
	if left.GrantedTTL < 2 || len(left.Keys) != 1 {
		t.Fatalf("%v", left)
	}
	for answer := range client.Watch(ctx, key(t, "a")) {
		must(t, answer.Err())
		for _, event := range answer.Events {
			if event.Type == mvccpb.DELETE {
				return
			}
		}
	}
	t.Fatal("the key stays")
}

func TestSessionKeepsItsLeaseAndEndsWhenItIsRevoked(t *testing.T) {
	client, ctx := connect(t)
	session, err := concurrency.NewSession(client, concurrency.WithTTL(3), concurrency.WithContext(ctx))
	must(t, err)
	_, err = client.Revoke(ctx, session.Lease())
	must(t, err)
	select {
	case <-session.Done():
	case <-ctx.Done():
		t.Fatal("the session does not end")
	}
}

func TestMutexExcludes(t *testing.T) {
	client, ctx := connect(t)
	var group sync.WaitGroup
	inside, total := 0, 0
	for range 8 {
		group.Add(1)
		go func() {
			defer group.Done()
			session, err := concurrency.NewSession(client, concurrency.WithTTL(30))
			if err != nil {
				t.Error(err)
				return
			}
			defer session.Close()
			mutex := concurrency.NewMutex(session, key(t, "lock"))
			for range 5 {
				if err := mutex.Lock(ctx); err != nil {
					t.Error(err)
					return
				}
				if inside++; inside != 1 {
					t.Error("two are inside")
				}
				total++
				inside--
				if err := mutex.Unlock(ctx); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	group.Wait()
	if total != 40 {
		t.Fatalf("entered %d times", total)
	}
}

func TestTryLockOfAHeldMutexIsRefused(t *testing.T) {
	client, ctx := connect(t)
	var mutexes []*concurrency.Mutex
	for range 2 {
		session, err := concurrency.NewSession(client)
		must(t, err)
		defer session.Close()
		mutexes = append(mutexes, concurrency.NewMutex(session, key(t, "lock")))
	}
	must(t, mutexes[0].TryLock(ctx))
	if err := mutexes[1].TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
		t.Fatalf("second: %v", err)
	}
	must(t, mutexes[0].Unlock(ctx))
	must(t, mutexes[1].TryLock(ctx))
}

func TestElectionPassesOn(t *testing.T) {
	client, ctx := connect(t)
	campaign := func(value string) *concurrency.Election {
		session, err := concurrency.NewSession(client, concurrency.WithTTL(30))
		must(t, err)
		t.Cleanup(func() { session.Close() })
		election := concurrency.NewElection(session, key(t, "election"))
		must(t, election.Campaign(ctx, value))
		return election
	}
	first := campaign("first")
	observed := first.Observe(ctx)
	second := make(chan *concurrency.Election)
	go func() { second <- campaign("second") }()
	next := func() string { return string((<-observed).Kvs[0].Value) }
	if value := next(); value != "first" {
		t.Fatalf("leader %q", value)
	}
	must(t, first.Proclaim(ctx, "first again"))
	if value := next(); value != "first again" {
		t.Fatalf("proclaimed %q", value)
	}
	must(t, first.Resign(ctx))
	<-second
	if value := next(); value != "second" {
		t.Fatalf("next leader %q", value)
	}
	if err := first.Proclaim(ctx, "late"); !errors.Is(err, concurrency.ErrElectionNotLeader) {
		t.Fatalf("proclaimed by one who resigned: %v", err)
	}
}

func TestSoftwareTransactionalMemoryKeepsTheSum(t *testing.T) {
	client, ctx := connect(t)
	const accounts, each = 5, 100
	account := func(n int) string { return key(t, strconv.Itoa(n)) }
	for n := range accounts {
		_, err := client.Put(ctx, account(n), strconv.Itoa(each))
		must(t, err)
	}
	var group sync.WaitGroup
	for worker := range 6 {
		group.Add(1)
		go func() {
			defer group.Done()
			for round := range 10 {
				from, to := account((worker+round)%accounts), account((worker*3+round+1)%accounts)
				if from == to {
					continue
				}
				_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
					have, _ := strconv.Atoi(stm.Get(from))
					other, _ := strconv.Atoi(stm.Get(to))
					stm.Put(from, strconv.Itoa(have-1))
					stm.Put(to, strconv.Itoa(other+1))
					return nil
				}, concurrency.WithAbortContext(ctx), concurrency.WithIsolation(concurrency.SerializableSnapshot))
				if err != nil {
					t.Error(err)
				}
			}
		}()
	}
	group.Wait()
	all, err := client.Get(ctx, key(t, ""), clientv3.WithPrefix())
	must(t, err)
	sum := 0
	for _, kv := range all.Kvs {
		value, _ := strconv.Atoi(string(kv.Value))
		sum += value
	}
	if sum != accounts*each {
		t.Fatalf("sum %d", sum)
	}
}

func TestNamespaceIsAPrefix(t *testing.T) {
	client, ctx := connect(t)
	kv, watcher := namespace.NewKV(client.KV, key(t, "")), namespace.NewWatcher(client.Watcher, key(t, ""))
	events := watcher.Watch(ctx, "a")
	if opened, err := kv.Get(ctx, "a"); err != nil || opened.Count != 0 {
		t.Fatalf("%v %v", opened, err)
	}
	now, err := kv.Put(ctx, "a", "1")
	must(t, err)
	got, err := client.Get(ctx, key(t, "a"))
	must(t, err)
	if got.Count != 1 {
		t.Fatalf("not below the prefix: %v", got)
	}
	_ = events
	answer := <-watcher.Watch(ctx, "a", clientv3.WithRev(now.Header.Revision))
	if string(answer.Events[0].Kv.Key) != "a" {
		t.Fatalf("%v", answer)
	}
}

func TestMaintenanceAndMembersAnswer(t *testing.T) {
	client, ctx := connect(t)
	endpoint := client.Endpoints()[0]
	status, err := client.Status(ctx, endpoint)
	must(t, err)
	if status.Leader == 0 || status.Version == "" || status.DbSize == 0 {
		t.Fatalf("%v", status)
	}
	members, err := client.MemberList(ctx)
	must(t, err)
	if len(members.Members) != 1 || members.Members[0].ID != status.Header.MemberId {
		t.Fatalf("%v", members)
	}
	hash, err := client.HashKV(ctx, endpoint, 0)
	must(t, err)
	if hash.Hash == 0 {
		t.Fatalf("%v", hash)
	}
	alarms, err := client.AlarmList(ctx)
	must(t, err)
	if len(alarms.Alarms) != 0 {
		t.Fatalf("%v", alarms)
	}
	_, err = client.Defragment(ctx, endpoint)
	must(t, err)
}
