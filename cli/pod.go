package cli

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/spec"
)

// pod holds the verbs about pods, which Kubernetes makes.
func (p *program) pod() *cobra.Command {
	return p.management("pod", "Work with the pods of Kubernetes: ls inspect ps stats trace stop rm",
		`  berth pod ls
  berth pod ps shop/front
  berth pod trace shop/front
  berth logs shop/front/app          the containers in them are like all others`,
		p.podLs(), p.podPs(), p.podStats(), p.podTrace(), p.podInspect(), p.podStop(), p.podRm())
}

// podNames lists the pods as namespace/name.
func (p *program) podNames(ctx context.Context) ([]string, error) {
	pods, err := p.node().PodList(ctx, nil)
	seen := map[string]bool{}
	var names []string
	for _, pod := range pods {
		if name := pod.Config.Namespace + "/" + pod.Config.Name; !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names, err
}

func (p *program) meantPod(ctx context.Context, err error, ref string) error {
	return meant(ctx, err, ref, "pod ls", p.podNames)
}

func (p *program) podInspect() *cobra.Command {
	v := &inspectVerb{program: p, kind: "pod"}
	cmd := &cobra.Command{
		Use:   "inspect [OPTIONS] POD...",
		Short: "Show all that is known of pods",
		Long: `Show all that is known of pods and of their containers, as a JSON list or by a
Go template.`,
		Example: `  berth pod inspect shop/front
  berth pod inspect -f '{{join .IPs " "}}' front`,
		Args:              arguments(1, -1),
		RunE:              func(cmd *cobra.Command, args []string) error { return v.show(cmd.Context(), args) },
		ValidArgsFunction: completeAll(-1, p.podNames),
	}
	v.flags(cmd)
	return cmd
}

func (p *program) podStop() *cobra.Command {
	return &cobra.Command{
		Use:   "stop POD...",
		Short: "Stop pods: end their containers and take their networks away",
		Long: `Stop pods: end their containers, each with the time it was given, and take
their networks away. A pod that kubelet wants is made anew.`,
		Example: "  berth pod stop shop/front\n  berth pod stop $(berth pod ls -q --filter namespace=test)",
		Args:    arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.each(cmd.Context(), "pod stop", args, func(ctx context.Context, ref string) error {
				return p.meantPod(ctx, p.node().PodStop(ctx, ref), ref)
			})
		},
		ValidArgsFunction: completeAll(-1, p.podNames),
	}
}

func (p *program) podRm() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rm [OPTIONS] POD...",
		Aliases: []string{"remove"},
		Short:   "Remove pods with their containers",
		Example: "  berth pod rm shop/front\n  berth pod rm -f front        even if it is ready",
		Args:    arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.each(cmd.Context(), "pod rm", args, func(ctx context.Context, ref string) error {
				err := p.node().PodRemove(ctx, ref, force)
				if force && errors.Is(err, errs.NotFound) {
					return nil // gone is what was asked for
				}
				return p.meantPod(ctx, err, ref)
			})
		},
		ValidArgsFunction: completeAll(-1, p.podNames),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "stop pods that are ready; those that are not there are no failure")
	return cmd
}

// inspectedPod is a pod with all its containers.
type inspectedPod struct {
	spec.Pod
	Containers []spec.PodContainer `json:"containers"`
}

func (p *program) inspectPod(ctx context.Context, ref string) (any, error) {
	pod, err := p.node().PodGet(ctx, ref)
	if err != nil {
		return nil, err
	}
	containers, err := p.node().PodContainers(ctx, pod.ID)
	if err != nil {
		return nil, err
	}
	return inspectedPod{pod, containers}, nil
}

// onlyKeys refuses keys of filters that mean nothing here.
func onlyKeys(filter spec.Filter, keys ...string) error {
	for key := range filter {
		if !slices.Contains(keys, key) {
			return errs.New(errs.Invalid, "filter %q: expected %s", key, strings.Join(keys, ", "))
		}
	}
	return nil
}
