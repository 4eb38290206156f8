package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// watch sends to gone when our table or a chain of it was deleted, by us or not,
// until ctx is done; and once at the start, for what was deleted before. It costs
// nothing while no rules change.
func (fw *firewall) watch(ctx context.Context, gone chan<- struct{}) error {
	var conn *netlink.Conn
	err := fw.host.do(func() (err error) {
		conn, err = netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
		return err
	})
	if err != nil {
		return fmt.Errorf("listen for changes of nftables: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	for deleted := true; ; {
		if deleted {
			tell(gone)
		}
		messages, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS): // so much changed that some of it is not told
			deleted = true
		case err != nil:
			_ = conn.Close()
			return fmt.Errorf("listen for changes of nftables: %w", err)
		default:
			deleted = slices.ContainsFunc(messages, fw.isDeletion)
		}
	}
}

// isDeletion says whether the kernel tells that our table, or a chain of it, is
// no more.
func (fw *firewall) isDeletion(m netlink.Message) bool {
	switch m.Header.Type {
	case unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE, unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELCHAIN:
		return bytes.Contains(m.Data, append([]byte(fw.table.Name), 0)) // of the names in it one is the table's
	}
	return false
}

func tell(gone chan<- struct{}) {
	select {
	case gone <- struct{}{}:
	default: // it is told already
	}
}
