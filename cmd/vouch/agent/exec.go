package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

func newExec(*cli.Options) *cobra.Command {
	var l leaser
	var wanted []string
	var envFile string
	var how execution
	cmd := &cobra.Command{
		Use:   "exec {--proxy NAME... | --sandbox | --credential NAME=VARIABLE... | --env-file FILE} -- COMMAND [ARGUMENT...]",
		Short: "Run a command with leased credentials, then revoke them",
		Long: `Exec leases credentials to itself, starts the command with them in its
environment, waits for it, and then revokes them. The command gets the standard streams
and signals, and exec returns its exit code: 128 plus the signal's number if a signal
ended it, 127 if it cannot be started. Renewable leases are renewed while the command
runs. If vouch itself is killed, the daemon revokes what is bound to its process.

It is vouch that leases, so an entry's selectors have to fit vouch as it is started here,
and not COMMAND. If a lease is revoked, by an administrator or because the entry no longer
grants it, vouch says so, and --on-revoke decides what happens to the command: signal
sends it SIGTERM, stop kills it 10 seconds later as well, and ignore lets it run.

A credential with one field goes to VARIABLE; with several, each goes to VARIABLE_FIELD.
NAME:FIELD=VARIABLE takes one field. A .env file may contain handles instead of values,
vouch:NAME or vouch:NAME:FIELD; its other variables are set as they are. Other processes
of the same user can read a process's environment, so prefer an agent that asks the
socket itself.

With --proxy the command gets no credential. Its clients are pointed at a port of
127.0.0.1 that serves the command and what it starts, and nobody else; vouchd makes their
calls with the credential, within its rules. What stands in place of the key is a handle,
of no use to any other process. Handles in a .env file are treated likewise if their
credential is one that the proxy uses. The command must not outlive vouch.

With --intercept, clients that know no base URL work too: the port is their HTTP proxy
(HTTPS_PROXY and the like). TLS to a host that the definitions of --proxy have is ended by
vouch, with a certificate that it makes for these hosts alone and that no other program
trusts (SSL_CERT_FILE and the like); TLS to hosts of a definition with passthrough passes
as it is, and nothing else does.

With --sandbox the command has a network of its own, in which every name and address leads
to vouch: it reaches the hosts of its definitions, whatever it makes of its environment, and
nothing else. It has no Unix sockets, no privileges, and private /tmp and /run; files it can
read as its user can. What it tries is refused and recorded. This includes --intercept.`,
		Example: `  vouch exec --credential openai-research=OPENAI_API_KEY -- python agent.py
  vouch exec --credential warehouse-readonly:url=DATABASE_URL -- psql
  vouch exec --credential warehouse-readonly=PG --param schema=sales -- ./report
  vouch exec --env-file .env -- ./app
  vouch exec --proxy openai,github -- node agent.js
  vouch exec --proxy github --intercept -- git push
  vouch exec --sandbox --proxy anthropic,github,npm -- claude
  vouch exec --sandbox --write . -- python agent.py`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains([]string{onRevokeSignal, onRevokeStop, onRevokeIgnore}, how.onRevoke) {
				return cli.Usagef("--on-revoke %q: want signal, stop or ignore", how.onRevoke)
			}
			if len(how.write) > 0 && !how.sandbox {
				return cli.Usagef("--write is for --sandbox; add it")
			}
			vars, plain, err := readEnvironment(cmd, envFile)
			if err != nil {
				return err
			}
			more, err := parseVariables(wanted, envFile != "" || len(how.proxies) > 0 || how.sandbox)
			if err != nil {
				return err
			}
			// From here on signals are for the command: vouch must not exit and
			// leave it and its leases behind.
			signals := make(chan os.Signal, 16)
			signal.Notify(signals, passedOn...)
			defer signal.Stop(signals)
			return l.exec(cmd.Context(), append(vars, more...), plain, args, signals, how)
		},
	}
	l.flags(cmd)
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringArrayVar(&wanted, "credential", nil, "put a credential into the environment, as `NAME=VARIABLE`; may be repeated")
	cmd.Flags().StringSliceVar(&how.proxies, "proxy", nil, "have vouchd make the calls for the credential `NAME`; several with commas")
	cmd.Flags().BoolVar(&how.intercept, "intercept", false, "be the HTTP proxy of the command, and end its TLS to the hosts of --proxy")
	cmd.Flags().BoolVar(&how.sandbox, "sandbox", false, "let the command reach nothing but what --proxy names; all that is granted without it")
	cmd.Flags().StringArrayVar(&how.write, "write", nil, "with --sandbox: let it write to this `directory` and no other; may be repeated")
	cmd.Flags().StringVar(&envFile, "env-file", "", "set the variables of this .env `file`, with credentials for its handles")
	cmd.Flags().StringVar(&how.onRevoke, "on-revoke", onRevokeSignal, "what to do to the command when a lease is revoked: `signal, stop or ignore`")
	cmd.Flags().StringArrayVar(&l.params, "param", nil, "choose a parameter, as `key=value`, or NAME:key=value if there are several credentials; may be repeated")
	return cmd
}

// An execution is how the command runs.
type execution struct {
	proxies   []string
	intercept bool
	sandbox   bool
	write     []string // the directories that it may write, if sandboxed; nil: as its user may
	onRevoke  string
}

// What happens to the command when one of its leases is revoked.
const (
	onRevokeSignal = "signal"
	onRevokeStop   = "stop"
	onRevokeIgnore = "ignore"
)

// passedOn is what another process may send to the command by way of vouch.
// SIGTSTP and SIGCONT are left to the kernel: a terminal sends them to both.
var passedOn = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM,
}

// A variable is where a credential, or one field of it, goes.
type variable struct {
	credential string
	field      string // empty: all
	name       string
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func parseVariables(wanted []string, fromFile bool) (vars []variable, err error) {
	if len(wanted) == 0 && !fromFile {
		return nil, cli.Usagef("--proxy NAME, --credential NAME=VARIABLE or --env-file is required")
	}
	for _, w := range wanted {
		from, to, ok := strings.Cut(w, "=")
		name, field, several := strings.Cut(from, ":")
		if !ok || name == "" || several && field == "" || !variableName.MatchString(to) {
			return nil, cli.Usagef("--credential %q: want NAME=VARIABLE or NAME:FIELD=VARIABLE", w)
		}
		vars = append(vars, variable{name, field, to})
	}
	return vars, nil
}

// exec leases, runs and revokes. Ctx and the signals end the leasing only. An error
// in revoking does not hide the command's exit code.
func (l *leaser) exec(ctx context.Context, vars []variable, plain, args []string, signals <-chan os.Signal, how execution) error {
	client, err := l.client()
	if err != nil {
		return err
	}
	defer client.Close()
	leasing, leased := untilSignal(ctx, signals)
	within, cancel := context.WithTimeout(leasing, l.timeout)
	of, err := proxiedOf(within, client, vars, how.proxies, how.sandbox)
	cancel()
	var leases []*credentialv1.Lease
	var env []string
	if err == nil {
		leases, env, err = l.leaseAll(leasing, client, vars, of)
	}
	if s := leased(); s != nil {
		l.revokeAll(context.WithoutCancel(ctx), client, leases)
		return cli.ExitError(128 + int(s.(syscall.Signal)))
	}
	if err == nil {
		err = ctx.Err()
	}
	ctx = context.WithoutCancel(ctx)
	defer func() { l.revokeAll(ctx, client, leases) }()
	if err != nil {
		return err
	}
	var c *caller
	if len(of) > 0 || how.sandbox {
		if c, err = newCaller(proxySocket(l.socket), of, how.intercept || how.sandbox); err != nil {
			return err
		}
	}
	if c != nil && !how.sandbox {
		more, stop, err := c.start(ctx, how.intercept)
		if err != nil {
			return err
		}
		defer stop()
		env = append(env, more...)
	}
	renewing, stop := context.WithCancel(ctx)
	for _, lease := range leases {
		go keepRenewed(renewing, client, lease)
	}
	defer stop()
	revoked := make(chan struct{}, len(leases))
	for _, lease := range leases {
		go awaitRevocation(renewing, client, lease, revoked)
	}
	if how.sandbox {
		return c.sandboxed(ctx, args, append(plain, env...), signals, revoked, how)
	}
	return runCommand(args, append(plain, env...), signals, revoked, how.onRevoke)
}

// untilSignal returns a context that ends with a signal. Done ends the listening,
// and returns the signal, if one came.
func untilSignal(ctx context.Context, signals <-chan os.Signal) (_ context.Context, done func() os.Signal) {
	ctx, cancel := context.WithCancel(ctx)
	stop, got := make(chan struct{}), make(chan os.Signal, 1)
	go func() {
		select {
		case s := <-signals:
			got <- s
			cancel()
		case <-stop:
			got <- nil
		}
	}()
	return ctx, func() os.Signal {
		close(stop)
		defer cancel()
		if s := <-got; s != nil {
			return s
		}
		select {
		case s := <-signals: // at the same time
			return s
		default:
			return nil
		}
	}
}

// awaitRevocation tells when a lease ends before it expires. While the daemon is
// away it tries again: a lease that is gone when it is back was revoked meanwhile.
func awaitRevocation(ctx context.Context, client *cli.Credentials, lease *credentialv1.Lease, revoked chan<- struct{}) {
	for delay := time.Second; ; delay = min(2*delay, time.Minute) {
		reason, expired, err := client.AwaitEnd(ctx, lease.Id)
		switch {
		case ctx.Err() != nil || expired:
			return
		case err == nil || errors.Is(err, cli.ErrNoLease) && !lease.Renewable && time.Now().Before(time.Unix(lease.ExpiresAt, 0)):
			if err != nil {
				reason = "it ended while the daemon was away"
			}
			fmt.Fprintf(os.Stderr, "vouch: the lease of %s was revoked: %s\n", lease.Credential, reason)
			revoked <- struct{}{}
			return
		case !cli.MayTryAgain(err):
			return // of no use, such as with an older daemon
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
	}
}

// leaseAll leases each credential once. With an error, it returns what was leased
// until then. Handles are put into of.
func (l *leaser) leaseAll(ctx context.Context, client *cli.Credentials, vars []variable, of map[string]*handled) (leases []*credentialv1.Lease, env []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	got := make(map[string][]secret.Field)
	for name := range of {
		vars = append(vars, variable{credential: name})
	}
	for _, v := range vars {
		fields, ok := got[v.credential]
		if !ok {
			req, err := l.request(v.credential, credentialv1.Exposure_EXPOSURE_ENVIRONMENT)
			if err != nil {
				return leases, nil, err
			}
			lease, of, err := client.Grant(ctx, req)
			if err != nil {
				return leases, nil, err
			}
			defer wipe(of)
			leases = append(leases, lease)
			fields, got[v.credential] = of, of
		}
		if h := of[v.credential]; h != nil && h.handle == "" {
			handle, err := fieldNamed(v.credential, fields, "handle")
			if err != nil {
				return leases, nil, err
			}
			h.handle = string(handle)
		}
		if v.name == "" {
			continue
		}
		if env, err = v.add(env, fields); err != nil {
			return leases, nil, err
		}
	}
	return leases, env, nil
}

// add puts a credential's fields among the variables.
func (v variable) add(env []string, fields []secret.Field) ([]string, error) {
	put := func(name string, value []byte) error {
		if bytes.IndexByte(value, 0) >= 0 {
			return fmt.Errorf("%s for %s contains a zero byte, which a variable cannot", v.credential, name)
		}
		env = append(env, name+"="+string(value))
		return nil
	}
	if v.field != "" {
		value, err := fieldNamed(v.credential, fields, v.field)
		if err != nil {
			return env, err
		}
		return env, put(v.name, value)
	}
	if len(fields) == 1 {
		return env, put(v.name, fields[0].Value.Reveal())
	}
	for _, f := range fields {
		if err := put(v.name+"_"+envName(f.Name), f.Value.Reveal()); err != nil {
			return env, err
		}
	}
	return env, nil
}

// keepRenewed renews a lease whenever half of what is left of it has passed, for as
// long as renewing extends it.
func keepRenewed(ctx context.Context, client *cli.Credentials, lease *credentialv1.Lease) {
	const least = time.Second
	for lease.Renewable && lease.ExpiresAt < lease.LatestAt {
		left := time.Until(time.Unix(lease.ExpiresAt, 0))
		if left <= 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(left/2, least)):
		}
		if renewed, err := client.Renew(ctx, lease.Id, 0); err == nil {
			lease = renewed
		}
	}
}

// killAfter is how long a command that is to be stopped has to end by itself.
const killAfter = 10 * time.Second

// revokeTimeout bounds how long revoking delays vouch's exit: the daemon keeps
// trying in any case.
const revokeTimeout = 10 * time.Second

func (l *leaser) revokeAll(ctx context.Context, client *cli.Credentials, leases []*credentialv1.Lease) {
	ctx, cancel := context.WithTimeout(ctx, revokeTimeout)
	defer cancel()
	for _, lease := range leases {
		if err := client.Revoke(ctx, lease.Id); err != nil && !errors.Is(err, cli.ErrNoLease) {
			fmt.Fprintf(os.Stderr, "vouch: %s: %v; the daemon keeps trying to revoke it\n", lease.Credential, err)
		}
	}
}

// A running command is one that can be told to end, and waited for.
type running interface {
	Signal(os.Signal) error // an error means that it has ended
	Wait() (syscall.WaitStatus, error)
}

// A child is a command as a process of vouch's own.
type child struct{ *exec.Cmd }

func (c child) Signal(s os.Signal) error { return c.Process.Signal(s) }

func (c child) Wait() (syscall.WaitStatus, error) {
	err := c.Cmd.Wait()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	return c.ProcessState.Sys().(syscall.WaitStatus), nil
}

// runCommand runs a command on vouch's own streams and returns how it ended as
// an [exitError].
func runCommand(args, env []string, signals <-chan os.Signal, revoked <-chan struct{}, onRevoke string) error {
	const cannotStart = 127 // as shells have it
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...) // the last of a name counts
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "vouch: %v\n", err)
		return cli.ExitError(cannotStart)
	}
	return follow(child{cmd}, signals, revoked, onRevoke)
}

// follow passes signals on to a command until it has ended.
func follow(cmd running, signals <-chan os.Signal, revoked <-chan struct{}, onRevoke string) error {
	ended := make(chan struct{})
	go func() {
		var kill <-chan time.Time
		for {
			select {
			case <-revoked:
				if onRevoke != onRevokeIgnore {
					cmd.Signal(syscall.SIGTERM)
				}
				if onRevoke == onRevokeStop && kill == nil {
					kill = time.After(killAfter)
				}
			case <-kill:
				cmd.Signal(syscall.SIGKILL)
			case s := <-signals:
				if !sentByTerminal(s) {
					cmd.Signal(s)
				}
			case <-ended:
				return
			}
		}
	}()
	status, err := cmd.Wait()
	close(ended)
	switch {
	case err != nil:
		return err
	case status.Signaled():
		return cli.ExitError(128 + int(status.Signal()))
	case status.ExitStatus() != 0:
		return cli.ExitError(status.ExitStatus())
	}
	return nil
}

// sentByTerminal reports whether a signal is one that a terminal sends to every
// process in front of it, the command among them, for a key. One that somebody
// sends to vouch alone meanwhile cannot be told from it.
func sentByTerminal(s os.Signal) bool {
	if !slices.Contains([]os.Signal{syscall.SIGINT, syscall.SIGQUIT}, s) {
		return false
	}
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false // there is none
	}
	defer tty.Close()
	front, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && front == unix.Getpgrp()
}
