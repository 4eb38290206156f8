package content_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	cdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

const nowhere = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

// say sends messages on one stream, and returns the last answer.
func (w *world) say(ctx context.Context, all ...*contentapi.WriteContentRequest) (answer *contentapi.WriteContentResponse, err error) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.contents.Write(ctx)
	w.must(err)
	for _, req := range all {
		if err := stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
			w.t.Fatal(err)
		}
		if answer, err = stream.Recv(); err != nil {
			return answer, err
		}
	}
	w.must(stream.CloseSend())
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		return answer, err
	}
	return answer, nil
}

func stat(ref string) *contentapi.WriteContentRequest {
	return &contentapi.WriteContentRequest{Action: contentapi.WriteAction_STAT, Ref: ref}
}

func data(offset int64, body string) *contentapi.WriteContentRequest {
	return &contentapi.WriteContentRequest{Action: contentapi.WriteAction_WRITE, Offset: offset, Data: []byte(body)}
}

func commit(total int64, expected string) *contentapi.WriteContentRequest {
	return &contentapi.WriteContentRequest{Action: contentapi.WriteAction_COMMIT, Offset: total, Total: total, Expected: expected}
}

func TestBadInput(t *testing.T) {
	w := newWorld(t)
	ctx := in("a")
	present := digest.FromString("here")
	w.write(ctx, present, []byte("here"), nil)
	for _, d := range []string{"", "sha256:", "sha256:short", "nothing", strings.Repeat("x", 4096), "sha256:../../../../etc/passwd", "md5:d41d8cd98f00b204e9800998ecf8427e"} {
		_, err := w.contents.Info(ctx, &contentapi.InfoRequest{Digest: d})
		w.code(err, codes.InvalidArgument)
		_, err = w.contents.Delete(ctx, &contentapi.DeleteContentRequest{Digest: d})
		w.code(err, codes.InvalidArgument)
		_, err = w.contents.Update(ctx, &contentapi.UpdateRequest{Info: &contentapi.Info{Digest: d}})
		w.code(err, codes.InvalidArgument)
		r, err := w.contents.Read(ctx, &contentapi.ReadContentRequest{Digest: d})
		w.must(err)
		_, err = r.Recv()
		w.code(err, codes.InvalidArgument)
		if d != "" {
			_, err = w.say(ctx, &contentapi.WriteContentRequest{Ref: "r", Expected: d, Data: []byte("x"), Action: contentapi.WriteAction_COMMIT})
			w.code(err, codes.FailedPrecondition)
		}
	}
	for namespace, want := range map[string]codes.Code{"": codes.FailedPrecondition, "no/name": codes.InvalidArgument, strings.Repeat("n", 77): codes.InvalidArgument} {
		ctx := in(namespace)
		_, err := w.contents.Info(ctx, &contentapi.InfoRequest{Digest: nowhere})
		w.code(err, want)
		_, err = w.say(ctx, stat("r"))
		w.code(err, want)
		_, err = w.leasesAPI.Create(ctx, &leasesapi.CreateRequest{})
		w.code(err, want)
	}
	_, err := w.contents.Info(ctx, &contentapi.InfoRequest{Digest: nowhere})
	w.code(err, codes.NotFound)
	_, err = w.contents.Update(ctx, &contentapi.UpdateRequest{})
	w.code(err, codes.InvalidArgument)
	_, err = w.contents.Update(ctx, &contentapi.UpdateRequest{Info: &contentapi.Info{Digest: present.String()}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"size"}}})
	w.code(err, codes.InvalidArgument)
	_, err = w.contents.Update(ctx, &contentapi.UpdateRequest{Info: &contentapi.Info{Digest: present.String(), Labels: map[string]string{"k": strings.Repeat("v", 4096)}}})
	w.code(err, codes.InvalidArgument)
	_, err = w.contents.Status(ctx, &contentapi.StatusRequest{Ref: "none"})
	w.code(err, codes.NotFound)
	_, err = w.contents.Abort(ctx, &contentapi.AbortRequest{Ref: "none"})
	w.code(err, codes.NotFound)
	_, err = w.contents.ListStatuses(ctx, &contentapi.ListStatusesRequest{Filters: []string{"ref=="}})
	w.code(err, codes.InvalidArgument)
	l, err := w.contents.List(ctx, &contentapi.ListContentRequest{Filters: []string{`labels."`}})
	w.must(err)
	_, err = l.Recv()
	w.code(err, codes.InvalidArgument)

	_, err = w.say(ctx, &contentapi.WriteContentRequest{Data: []byte("x")})
	w.code(err, codes.InvalidArgument) // no ref
	_, err = w.say(ctx, stat("x"), data(3, "abc"))
	w.code(err, codes.OutOfRange)
	_, err = w.say(ctx, stat("x"), data(-1, "abc"))
	w.code(err, codes.OutOfRange)
	_, err = w.say(ctx, stat("x"), data(0, "abc"), data(2, "d"))
	w.code(err, codes.OutOfRange)
	answer, err := w.say(ctx, stat("x"), data(3, "d"), data(0, "again"))
	w.must(err)
	if answer.Offset != 5 || answer.Digest != digest.FromString("again").String() {
		t.Error(answer)
	}
	_, err = w.say(ctx, stat("x"), commit(5, nowhere))
	w.code(err, codes.FailedPrecondition)
	_, err = w.say(ctx, stat("x"), &contentapi.WriteContentRequest{Action: contentapi.WriteAction_COMMIT, Offset: 5, Total: 4})
	w.code(err, codes.FailedPrecondition)
	_, err = w.say(ctx, stat("x"), &contentapi.WriteContentRequest{Action: contentapi.WriteAction_COMMIT, Offset: 5, Labels: map[string]string{"k": strings.Repeat("v", 4096)}})
	w.code(err, codes.InvalidArgument)
	_, err = w.say(ctx, &contentapi.WriteContentRequest{Ref: "x", Expected: present.String()})
	w.code(err, codes.AlreadyExists)
	_, err = w.say(ctx, stat("x"), &contentapi.WriteContentRequest{Action: contentapi.WriteAction_WRITE, Offset: 5, Expected: present.String()})
	w.code(err, codes.AlreadyExists) // it has come meanwhile: the ingest is of no use
	_, err = w.contents.Status(ctx, &contentapi.StatusRequest{Ref: "x"})
	w.code(err, codes.NotFound)
	_, err = w.say(leased(ctx, "none"), stat("x"))
	w.code(err, codes.NotFound)
	if n := w.blobCount(); n != 1 {
		t.Error(n, "blobs")
	}
}

// A client that goes away in the middle leaves what it wrote, for itself.
func TestClientVanishes(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(in("a"))
	stream, err := w.contents.Write(ctx)
	w.must(err)
	body := strings.Repeat("0123456789", 1<<20)
	w.must(stream.Send(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_WRITE, Ref: "r", Total: int64(len(body)), Data: []byte(body[:6<<20])}))
	_, err = stream.Recv()
	w.must(err)
	_, err = w.say(in("a"), stat("r"))
	w.code(err, codes.Unavailable)
	cancel()
	soon(t, "the writer lets go", func() bool {
		answer, err := w.say(in("a"), stat("r"))
		return err == nil && answer.Offset == 6<<20
	})
	w.restart()
	st, err := w.contents.Status(in("a"), &contentapi.StatusRequest{Ref: "r"})
	w.must(err)
	if st.Status.Offset != 6<<20 || st.Status.Total != int64(len(body)) {
		t.Error(st)
	}
	wr, err := w.store.Writer(in("a"), cdcontent.WithRef("r"), cdcontent.WithDescriptor(ocispec.Descriptor{Digest: digest.FromString(body), Size: int64(len(body))}))
	w.must(err)
	defer wr.Close()
	w.must(cdcontent.Copy(in("a"), wr, strings.NewReader(body), int64(len(body)), digest.FromString(body)))
	got, err := cdcontent.ReadBlob(in("a"), w.store, ocispec.Descriptor{Digest: digest.FromString(body)})
	if err != nil || string(got) != body {
		t.Error("not what was written:", err)
	}
	if topics := w.events.topics(); !slices.Equal(topics, []string{"a/content/create"}) {
		t.Error(topics)
	}
}

func TestRead(t *testing.T) {
	w := newWorld(t)
	body := bytes.Repeat([]byte("abcdefgh"), 300<<10) // 2.4 MiB: three messages
	d := digest.FromBytes(body)
	w.write(in("a"), d, body, nil)
	size := int64(len(body))
	for _, tt := range []struct{ offset, size, from, to int64 }{
		{0, 0, 0, size},
		{0, 10, 0, 10},
		{5, 1 << 20, 5, 5 + 1<<20},
		{size - 3, 10, size - 3, size},
		{size, 0, size, size},
		{-7, 4, 0, 4},
		{3, -1, 3, size},
		{1, 1<<63 - 1, 1, size},
	} {
		stream, err := w.contents.Read(in("a"), &contentapi.ReadContentRequest{Digest: d.String(), Offset: tt.offset, Size: tt.size})
		w.must(err)
		var got []byte
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			w.must(err)
			if m.Offset != int64(len(got)) {
				t.Error("offset", m.Offset, "after", len(got))
			}
			got = append(got, m.Data...)
		}
		if !bytes.Equal(got, body[tt.from:tt.to]) {
			t.Errorf("%+v: got %d bytes", tt, len(got))
		}
	}
	stream, err := w.contents.Read(in("a"), &contentapi.ReadContentRequest{Digest: d.String(), Offset: size + 1})
	w.must(err)
	_, err = stream.Recv()
	w.code(err, codes.OutOfRange)
	stream, err = w.contents.Read(in("b"), &contentapi.ReadContentRequest{Digest: d.String()})
	w.must(err)
	_, err = stream.Recv()
	w.code(err, codes.NotFound)
}

func TestList(t *testing.T) {
	w := newWorld(t)
	for n := range 250 {
		body := fmt.Sprint("blob ", n)
		w.write(in("a"), digest.FromString(body), []byte(body), map[string]string{"n": fmt.Sprint(n % 10)})
	}
	for want, filters := range map[int][]string{250: nil, 25: {"labels.n==3"}, 50: {"labels.n==3", "labels.n==4"}, 1: {"digest==" + digest.FromString("blob 7").String()}, 0: {"labels.m"}} {
		count := 0
		w.must(w.store.Walk(in("a"), func(cdcontent.Info) error { count++; return nil }, filters...))
		if count != want {
			t.Errorf("%d blobs fit %q", count, filters)
		}
	}
	for n := range 3 {
		_, err := w.say(in("a"), stat(fmt.Sprint("ref ", n)))
		w.must(err)
	}
	all, err := w.store.ListStatuses(in("a"))
	w.must(err)
	some, err := w.store.ListStatuses(in("a"), `ref~="[12]$"`)
	w.must(err)
	if len(all) != 3 || len(some) != 2 {
		t.Error(all, some)
	}
	w.must(w.store.Abort(in("a"), "ref 1"))
	w.must(w.store.Delete(in("a"), digest.FromString("blob 7")))
	if topics := w.events.topics(); topics[len(topics)-1] != "a/content/delete" {
		t.Error(topics)
	}
}

func TestLeasesService(t *testing.T) {
	w := newWorld(t)
	ctx := in("a")
	made, err := w.leasesAPI.Create(ctx, &leasesapi.CreateRequest{Labels: map[string]string{"k": "v"}})
	w.must(err)
	if made.Lease.ID == "" || made.Lease.CreatedAt == nil || made.Lease.Labels["k"] != "v" {
		t.Error(made)
	}
	l := leases.Lease{ID: made.Lease.ID}
	_, err = w.leasesAPI.Create(ctx, &leasesapi.CreateRequest{ID: l.ID})
	w.code(err, codes.AlreadyExists)
	_, err = w.leasesAPI.Create(ctx, &leasesapi.CreateRequest{ID: strings.Repeat("x", 1<<20)})
	w.code(err, codes.InvalidArgument)
	for _, r := range []*leasesapi.Resource{{Type: "content", ID: "x"}, {Type: "snapshots", ID: "x"}, {Type: "content/x", ID: nowhere}, {Type: "images"}} {
		_, err = w.leasesAPI.AddResource(ctx, &leasesapi.AddResourceRequest{ID: l.ID, Resource: r})
		w.code(err, codes.InvalidArgument)
	}
	_, err = w.leasesAPI.AddResource(ctx, &leasesapi.AddResourceRequest{ID: l.ID, Resource: &leasesapi.Resource{Type: "containers", ID: "x"}})
	w.code(err, codes.Unimplemented)
	_, err = w.leasesAPI.AddResource(ctx, &leasesapi.AddResourceRequest{ID: "none", Resource: &leasesapi.Resource{Type: "images", ID: "x"}})
	w.code(err, codes.NotFound)
	_, err = w.leasesAPI.ListResources(ctx, &leasesapi.ListResourcesRequest{ID: "none"})
	w.code(err, codes.NotFound)
	_, err = w.leasesAPI.List(ctx, &leasesapi.ListRequest{Filters: []string{"=="}})
	w.code(err, codes.InvalidArgument)

	w.write(leased(ctx, l.ID), digest.FromString("held"), []byte("held"), nil)
	w.must(w.manager.AddResource(ctx, l, leases.Resource{Type: "snapshots/overlayfs", ID: "s"}))
	all, err := w.manager.ListResources(ctx, l)
	w.must(err)
	if len(all) != 2 || all[0].ID != digest.FromString("held").String() || all[1].Type != "snapshots/overlayfs" {
		t.Error(all)
	}
	w.must(w.manager.DeleteResource(ctx, l, all[1]))
	found, err := w.manager.List(ctx, "id=="+l.ID+",labels.k==v")
	w.must(err)
	if none, err := w.manager.List(ctx, "labels.k==w"); err != nil || len(found) != 1 || len(none) != 0 {
		t.Error(found, none, err)
	}
	w.must(w.leases.Collect(t.Context()))
	if _, err := w.store.Info(ctx, digest.FromString("held")); err != nil {
		t.Error(err)
	}
	w.must(w.manager.Delete(ctx, l, leases.SynchronousDelete))
	if n := w.blobCount(); n != 0 {
		t.Error(n, "blobs after the lease went, and was waited for")
	}
	_, err = w.leasesAPI.Delete(ctx, &leasesapi.DeleteRequest{ID: l.ID, Sync: true})
	w.code(err, codes.NotFound)
}

// Who is told, at the end of what he writes, that somebody else has brought it
// meanwhile has it held by his lease, as who brought it has by his.
func TestBroughtMeanwhile(t *testing.T) {
	w := newWorld(t)
	body := []byte("both bring it")
	d := digest.FromBytes(body)
	var all []leases.Lease
	for range 2 {
		l, err := w.manager.Create(in("a"), leases.WithRandomID())
		w.must(err)
		all = append(all, l)
	}
	second := leased(in("a"), all[1].ID)
	stream, err := w.contents.Write(second)
	w.must(err)
	w.must(stream.Send(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_WRITE, Ref: "second", Data: body}))
	_, err = stream.Recv()
	w.must(err)
	w.write(leased(in("a"), all[0].ID), d, body, nil)
	w.must(stream.Send(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_COMMIT, Expected: d.String(), Total: int64(len(body)), Offset: int64(len(body))}))
	_, err = stream.Recv()
	w.code(err, codes.AlreadyExists)
	w.must(w.manager.Delete(in("a"), all[0], leases.SynchronousDelete))
	if _, err := w.store.Info(in("a"), d); err != nil {
		t.Error("what the second was told is here went with the first:", err)
	}
	w.must(w.manager.Delete(in("a"), all[1], leases.SynchronousDelete))
	if n := w.blobCount(); n != 0 {
		t.Error(n, "blobs are left")
	}
}

// A lease that expires while a client pulls: it is told so, what it left is
// collected, and others lose nothing.
func TestLeaseExpires(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- w.leases.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	other, err := w.manager.Create(in("a"), leases.WithRandomID())
	w.must(err)
	w.write(leased(in("a"), other.ID), digest.FromString("other"), []byte("other"), nil)
	l, err := w.manager.Create(in("a"), leases.WithRandomID(), leases.WithExpiration(1100*time.Millisecond))
	w.must(err)
	pull := leased(in("a"), l.ID)
	w.write(pull, digest.FromString("layer"), []byte("layer"), nil)
	wr, err := w.store.Writer(pull, cdcontent.WithRef("second"))
	w.must(err)
	_, err = wr.Write([]byte("half"))
	w.must(err)
	soon(t, "the lease ends", func() bool {
		all, err := w.manager.List(in("a"))
		return err == nil && len(all) == 1
	})
	err = wr.Commit(pull, 4, "")
	if err == nil || !strings.Contains(err.Error(), "lease does not exist") {
		t.Error(err)
	}
	_ = wr.Close()
	_, err = w.store.Writer(pull, cdcontent.WithRef("third"))
	if err == nil || !strings.Contains(err.Error(), "lease does not exist") {
		t.Error(err)
	}
	soon(t, "what it left is collected", func() bool {
		w.leases.Trigger()
		_, err := w.store.Info(in("a"), digest.FromString("layer"))
		left, _ := w.store.ListStatuses(in("a"))
		return err != nil && len(left) == 0 && w.blobCount() == 1
	})
	if _, err := w.store.Info(in("a"), digest.FromString("other")); err != nil {
		t.Error(err)
	}
}

// Whatever comes on the stream of a writer is answered, and leaves the store
// in order.
func FuzzWrite(f *testing.F) {
	f.Add("ref", "body", int64(0), int64(4), "", int32(2), "body", int64(4))
	f.Add("ref", "", int64(-5), int64(-1), "sha256:", int32(1), "x", int64(99))
	f.Add("a\x00/..", "body", int64(1<<62), int64(1<<62), nowhere, int32(7), "", int64(0))
	f.Fuzz(func(t *testing.T, ref, one string, offset, total int64, expected string, action int32, two string, next int64) {
		w := newWorld(t)
		ref = strings.ToValidUTF8(ref, "?")
		_, _ = w.say(in("a"),
			&contentapi.WriteContentRequest{Action: contentapi.WriteAction_WRITE, Ref: ref, Data: []byte(one), Offset: offset, Total: total, Expected: strings.ToValidUTF8(expected, "?")},
			&contentapi.WriteContentRequest{Action: contentapi.WriteAction(action), Data: []byte(two), Offset: next, Expected: strings.ToValidUTF8(expected, "?")},
			commit(0, ""))
		infos, err := w.content.List(t.Context(), "a")
		w.must(err)
		for _, info := range infos {
			body, err := cdcontent.ReadBlob(in("a"), w.store, ocispec.Descriptor{Digest: info.Digest})
			if err != nil || digest.FromBytes(body) != info.Digest || int64(len(body)) != info.Size {
				t.Error(info, err)
			}
		}
	})
}
