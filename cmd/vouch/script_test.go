package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/sandbox"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
	"github.com/vouchd/vouchd/programs"
)

func TestMain(m *testing.M) {
	if sandbox.IsStage(os.Args) {
		sandbox.RunStage(os.Args)
	}
	if socket := os.Getenv(leasetest.LeaseSocket); socket != "" { // an agent that a test has started
		if err := leasetest.AgentLeases(socket, os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	testscript.Main(ending{m}, map[string]func(){
		"vouch": func() { os.Exit(cli.Execute(context.Background(), newRoot(), os.Args[1:], os.Stdout, os.Stderr)) },
	})
}

// ending stops, after the tests, what they have shared.
type ending struct{ *testing.M }

func (m ending) Run() int {
	defer daemontest.RemovePrograms()
	defer leasetest.StopDatabase()
	return m.M.Run()
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata"})
}

func TestThePackagedProgramIsValid(t *testing.T) {
	text, err := os.ReadFile("../../packaging/etc/programs.d/research.yaml.disabled")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "research.yaml"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	if defined, err := programs.Load(dir, true); err != nil || len(defined) != 1 { // of a user that is not here
		t.Errorf("got %v, %v", defined, err)
	}
}

func TestEveryCommandHasHelpWithAnExample(t *testing.T) {
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		if cmd.Hidden {
			return // a deprecated name, whose help is that of the new one
		}
		if short := cmd.Short; short == "" || len(short) >= 60 || strings.HasSuffix(short, ".") {
			t.Errorf("%s: want help of one line under 60 characters without a full stop, got %q", cmd.CommandPath(), short)
		}
		// Imperative as far as a test can tell: no article, no third person.
		if first, _, _ := strings.Cut(cmd.Short, " "); slices.Contains([]string{"The", "A", "An", "Be", "This"}, first) || strings.HasSuffix(first, "s") {
			t.Errorf("%s: %q does not begin with an imperative", cmd.CommandPath(), cmd.Short)
		}
		if !cmd.HasSubCommands() && !strings.Contains(cmd.Example, cmd.CommandPath()) {
			t.Errorf("%s has no example of itself", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit(newRoot())
}
