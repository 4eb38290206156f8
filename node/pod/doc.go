// Package pod holds the pods of one node: containers that share kernel
// namespaces, a network and a fate, as Kubernetes means it.
//
// Set is the door to all of it. A pod has no process of its own unless its
// containers share a PID namespace: its namespaces are files that the room
// kernelns keeps. Its containers are given containers (spec.Given) of the room
// container, in Namespace, with ids of 64 hexadecimal digits; this room plays
// their client: it makes the root file system and the OCI spec, gives both to
// that room, and has it run them. So whatever people do to containers they can
// do to these.
//
// # What is kept where
//
// The truth is in memory. Pods, Containers and their kin read immutable views,
// without the lock of an operation and without touching a disk. How a container
// fares is the room container's to know.
//
//	<state>/pods/<id>/pod.json          the record of a pod, written before a call is answered
//	<state>/pods/<id>/<container>.json  that of a container of it
//	<state>/pods/<id>/etc/{resolv.conf,hosts,hostname}
//	<state>/pods/<id>/shm               its /dev/shm, a tmpfs
//	<state>/pods/<id>/images/<container>/<n>  image volumes
//	buckets "pod", "podcontainer"       the same records for the time after a reboot; these
//	                                    come with the next commit, so that no call waits for a disk
//
// In the boot that wrote them the files count: they outlive the node, however
// it ends. After a reboot the buckets count, and every pod is not ready. What a
// power cut can lose is a pod that was made a moment before; what such a one
// left (snapshots, addresses) is found and taken away at the next start.
//
// A record is written before what it tells of is made, and taken away after
// that has gone. A pod or a container whose record says that it is being made
// when the node starts is taken away: nobody was told of it.
//
// # Calls
//
// Every call can be made again. A call goes on to its end when its client goes
// away, with a deadline of its own; the same call made again waits for that end
// and has its result.
//
// # Locks, in their order
//
//	pod.op, container.op   one verb at a time; waits heed a ctx. No lock of a
//	                       pod is held while another pod is worked on
//	pod.mu                 the members, and the moment in which a pod is not ready
//	                       any more; never held while waiting
//	Set.mu                 the indexes
package pod
