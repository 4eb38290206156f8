// Package container holds the containers of one node: it makes them, starts
// and ends them, watches over them and takes them away whole.
//
// Set is the door to all of it. A container is found by a reference: its name,
// its full id, or a part of the id that only one has.
//
// # What is kept where
//
// The truth is in memory. Get, List and Wait read an immutable view of each
// container, without a lock and without touching a disk. The durable copy is
// one record a container in bucket "container" of base/kv; how removed ones
// ended stays in bucket "tombstone" for a while. Create and Remove cost one
// commit each. A start and an exit are written along with the next commit;
// where a restart policy hangs on them, before they are answered.
//
//	<root>/logs/<id>/container.log   output; goes with the container
//	<state>/containers/<id>/         bundle: config.json, rootfs, etc/{hosts,resolv.conf,hostname};
//	                                 there from start to the end of the clean-up after an exit
//
// A given container (spec.Given) has its OCI spec, its root file system and the
// places of its streams from a client. Its running side is its task, from
// CreateTask to DeleteTask; it ends with the boot. Of these there is
//
//	bucket "given"                   what the client said of the container; its record in
//	                                 bucket "container" holds the view made of it, and the
//	                                 last request for a task, for one that is to be restarted
//	<state>/tasks/<key>              the task and its execs, until DeleteTask; written before
//	                                 a call is answered, at no cost of a disk
//	<state>/containers/<key>/        as above; config.json is the client's, byte for byte
//
// where the key is the client's id, with "<namespace>+" before it unless the
// namespace is the node's own. All else is the same for both kinds: op, runs,
// ends, restarts, recovery, and what people do to containers.
//
// The snapshot of a container of the node's own has the container's id as its
// key, and the label berth.container. A given one's is its client's.
//
// # Locks, in their order
//
//	container.op     one verb at a time on one container; waits heed a ctx
//	rootfs.mu        mounting the container's root
//	container.files  writing the task's file
//	Set.mu           the indexes by id and name
//	container.mu     changes to the view; never held while waiting
//
// An exit takes op too: whoever holds op sees a container either running, with
// everything it needs, or ended, with everything put away. Stop and Remove
// therefore never wait for an exit while they hold op.
package container
