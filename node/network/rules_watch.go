package network

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tableDeleted is the type of the kernel's message that a table of nftables
// is no more.
const tableDeleted = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE

// watch sends to gone when a table of the host was deleted, ours or not, by us
// or not, until ctx is done; and once at the start, for what was deleted
// before. It costs nothing while no rules change.
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
			select {
			case gone <- struct{}{}:
			default: // it is told already
			}
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
			deleted = slices.ContainsFunc(messages, func(m netlink.Message) bool { return m.Header.Type == tableDeleted })
		}
	}
}
