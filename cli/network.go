package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/cli/option"
	"berth/cli/table"
	"berth/spec"
)

func (p *program) network() *cobra.Command {
	return p.management("network", "Work with networks: ls create connect disconnect inspect rm prune",
		`  berth network create backend
  berth run -d --name db --network backend postgres
  berth network connect backend web
  berth network ls`,
		p.networkLs(), p.networkCreate(), p.networkConnect(), p.networkDisconnect(),
		p.inspectOf("network", p.networkNames), p.networkRm(), p.networkPrune())
}

func (p *program) networkLs() *cobra.Command {
	f := &listFlags{}
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Aliases: []string{"list"},
		Short:   "List networks",
		Long:    "List networks. Filters: id, name, driver, label, type (builtin or custom), dangling.",
		Example: `  berth network ls
  berth network ls -q --filter label=team=web`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := f.filter()
			if err != nil {
				return err
			}
			networks, err := p.node().NetworkList(cmd.Context(), filter)
			if err != nil {
				return err
			}
			rows := make([]networkRow, len(networks))
			for i, n := range networks {
				rows[i] = newNetworkRow(n, f.noTrunc)
			}
			return write(p.stdout, f, networkView(), rows)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f.add(cmd, "id", "name", "driver", "label", "type", "dangling")
	return cmd
}

type networkRow struct {
	CreatedAt string
	Driver    string
	ID        string
	IPv6      string
	Internal  string
	Labels    string
	Name      string
	Scope     string
	Subnets   string

	labels map[string]string
}

// Label is the value of one label.
func (r networkRow) Label(name string) string { return r.labels[name] }

func networkView() table.View[networkRow] {
	return table.View[networkRow]{
		Columns: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Subnets}}",
		Quiet:   "{{.ID}}",
		Titles:  map[string]string{"ID": "NETWORK ID", "CreatedAt": "CREATED AT"},
	}
}

func newNetworkRow(n spec.Network, full bool) networkRow {
	row := networkRow{
		ID: n.ID, Name: n.Config.Name, Driver: n.Config.Driver, Scope: "local",
		CreatedAt: table.At(n.Created), IPv6: strconv.FormatBool(n.Config.IPv6), Internal: strconv.FormatBool(n.Config.Internal),
		Labels: joinMap(n.Config.Labels), labels: n.Config.Labels,
	}
	for _, s := range n.Config.Subnets {
		if row.Subnets != "" {
			row.Subnets += ","
		}
		row.Subnets += s.Subnet
	}
	if !full {
		row.ID = table.ID(n.ID)
	}
	return row
}

type networkCreateFlags struct {
	config                    spec.NetworkConfig
	subnets, gateways, ranges []string
	labels, options           []string
	attachable                bool
}

func (p *program) networkCreate() *cobra.Command {
	f := &networkCreateFlags{}
	cmd := &cobra.Command{
		Use:   "create [OPTIONS] NAME",
		Short: "Make a network",
		Example: `  berth network create backend
  berth network create --subnet 10.9.0.0/24 --gateway 10.9.0.1 lab
  berth network create --ipv6 --internal sealed`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := f.read(args[0])
			if err != nil {
				return err
			}
			made, err := p.node().NetworkCreate(cmd.Context(), config)
			if err != nil {
				return err
			}
			fmt.Fprintln(p.stdout, made.ID)
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.config.Driver, "driver", "d", "bridge", "bridge, or cni")
	flags.StringArrayVar(&f.subnets, "subnet", nil, "range of addresses, as in 10.9.0.0/24; chosen when not given")
	flags.StringArrayVar(&f.gateways, "gateway", nil, "address of the host in the subnet")
	flags.StringArrayVar(&f.ranges, "ip-range", nil, "part of the subnet to give addresses out of")
	flags.BoolVar(&f.config.IPv6, "ipv6", false, "IPv6 too")
	flags.BoolVar(&f.config.Internal, "internal", false, "no way out")
	flags.IntVar(&f.config.MTU, "mtu", 0, "largest packet in bytes")
	flags.StringArrayVar(&f.labels, "label", nil, "set a label: key=value")
	flags.StringArrayVarP(&f.options, "opt", "o", nil, "option of the driver: key=value")
	flags.BoolVar(&f.attachable, "attachable", false, "taken for docker's sake; all networks are")
	_ = flags.MarkHidden("attachable")
	return cmd
}

// mtuOption is what docker's users know the MTU of a network by.
const mtuOption = "com.docker.network.driver.mtu"

func (f *networkCreateFlags) read(name string) (config spec.NetworkConfig, err error) {
	config = f.config
	config.Name = name
	if config.Labels, err = option.Map(f.labels); err != nil {
		return config, err
	}
	if config.Options, err = option.Map(f.options); err != nil {
		return config, err
	}
	if mtu, found := config.Options[mtuOption]; found {
		if config.MTU, err = strconv.Atoi(mtu); err != nil {
			return config, errs.New(errs.Invalid, "%s %q: expected a number", mtuOption, mtu)
		}
		delete(config.Options, mtuOption)
	}
	config.Subnets, err = option.Subnets(f.subnets, f.gateways, f.ranges)
	return config, err
}

func (p *program) networkConnect() *cobra.Command {
	var endpoint spec.EndpointConfig
	cmd := &cobra.Command{
		Use:   "connect [OPTIONS] NETWORK CONTAINER",
		Short: "Join a container to a network",
		Example: `  berth network connect backend web
  berth network connect --alias db --ip 10.9.0.7 lab postgres`,
		Args: arguments(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := option.Addresses(endpoint); err != nil {
				return err
			}
			endpoint.Network = args[0]
			err := p.node().NetworkConnect(cmd.Context(), args[0], args[1], endpoint)
			return p.meantEither(cmd.Context(), err, args[0], args[1])
		},
		ValidArgsFunction: completeInTurn(p.networkNames, p.containerNames),
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&endpoint.Aliases, "alias", nil, "further name on the network")
	flags.StringVar(&endpoint.IPv4, "ip", "", "IPv4 address")
	flags.StringVar(&endpoint.IPv6, "ip6", "", "IPv6 address")
	flags.StringVar(&endpoint.MAC, "mac-address", "", "MAC address")
	return cmd
}

func (p *program) networkDisconnect() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "disconnect [OPTIONS] NETWORK CONTAINER",
		Short:   "Take a container off a network",
		Example: "  berth network disconnect backend web",
		Args:    arguments(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := p.node().NetworkDisconnect(cmd.Context(), args[0], args[1])
			if force && errs.KindOf(err) == errs.NotFound {
				return nil
			}
			return p.meantEither(cmd.Context(), err, args[0], args[1])
		},
		ValidArgsFunction: completeInTurn(p.networkNames, p.containerNames),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "one that is not on it is no failure")
	return cmd
}

// meantEither finds out which of the two was not there.
func (p *program) meantEither(ctx context.Context, err error, network, container string) error {
	if errs.KindOf(err) != errs.NotFound {
		return err
	}
	if _, missing := p.node().NetworkGet(ctx, network); errs.KindOf(missing) == errs.NotFound {
		return p.meantNetwork(ctx, err, network)
	}
	return p.meantContainer(ctx, err, container)
}

func (p *program) networkRm() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rm NETWORK...",
		Aliases: []string{"remove"},
		Short:   "Remove networks that no container is on",
		Example: "  berth network rm backend",
		Args:    arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.each(cmd.Context(), "network rm", args, func(ctx context.Context, ref string) error {
				err := p.node().NetworkRemove(ctx, ref)
				if force && errs.KindOf(err) == errs.NotFound {
					return nil
				}
				return p.meantNetwork(ctx, err, ref)
			})
		},
		ValidArgsFunction: completeAll(-1, p.networkNames),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "those that are not there are no failure")
	return cmd
}

func (p *program) networkPrune() *cobra.Command {
	return p.prune(pruneVerb{
		short: "Remove the networks that no container is on", what: "all networks that no container is on",
		example: "  berth network prune -f",
		act: func(ctx context.Context, filter spec.Filter, _ bool) (spec.Pruned, error) {
			return p.node().NetworkPrune(ctx, filter)
		},
	})
}
