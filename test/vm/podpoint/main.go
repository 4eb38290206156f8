// Command podpoint calls the two RPCs of the CRI that crictl has no verb for:
//
//	podpoint checkpoint POD FOLDER CONTAINER…
//	podpoint restore FOLDER POD.json CONTAINER.json…
//
// The first prints nothing, the second the ids of the pod and its containers,
// a line each. An error goes to stderr, with its code before it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	if err := run(context.Background(), os.Stdout, os.Args[1:]); err != nil { //nolint:forbidigo // it is a program of its own
		fmt.Fprintf(os.Stderr, "%s: %v\n", status.Code(err), err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, args []string) error {
	if len(args) < 3 {
		return errors.New("want checkpoint POD FOLDER CONTAINER… or restore FOLDER POD.json CONTAINER.json…")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := grpc.NewClient("unix:///run/berth/berth.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := cri.NewRuntimeServiceClient(conn)
	if args[0] == "checkpoint" {
		_, err := client.CheckpointPod(ctx, &cri.CheckpointPodRequest{PodSandboxId: args[1], OutputPath: args[2], ContainerIds: args[3:]})
		return err
	}
	request := &cri.RestorePodRequest{CheckpointPath: args[1], Config: &cri.PodSandboxConfig{}}
	if err := read(args[2], request.GetConfig()); err != nil {
		return err
	}
	for _, file := range args[3:] {
		config := &cri.ContainerConfig{}
		if err := read(file, config); err != nil {
			return err
		}
		request.ContainerConfigs = append(request.ContainerConfigs, config)
	}
	answer, err := client.RestorePod(ctx, request)
	if err != nil {
		return err
	}
	ids := []string{answer.GetPodSandboxId()}
	for _, c := range answer.GetRestoredContainers() {
		ids = append(ids, c.GetContainerId())
	}
	_, err = fmt.Fprintln(out, strings.Join(ids, "\n"))
	return err
}

func read(file string, message proto.Message) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return protojson.Unmarshal(data, message)
}
