package agent

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/deliver"
)

// fetcher is what the fetch commands share.
type fetcher struct {
	*cli.Options
	socket  string
	timeout time.Duration
	// algorithm signs JWT-SVIDs for entries that say none, where the daemon can: the flags
	// of a Kubernetes API server take RS256 alone by default.
	algorithm string
}

func newFetch(o *cli.Options) *cobra.Command {
	f := &fetcher{Options: o}
	cmd := &cobra.Command{
		Use:   "fetch",
		Short: "Fetch this process's identities, as any workload would",
		Long: `Fetch asks the agent socket for what this process (vouch, as started by you) is
entitled to. The socket is SPIFFE_ENDPOINT_SOCKET, or by default
` + cli.DefaultEndpoint + `.`,
	}
	cmd.PersistentFlags().StringVar(&f.socket, "socket", "", "agent socket, as `unix:///path`")
	cmd.PersistentFlags().DurationVar(&f.timeout, "timeout", 10*time.Second, "give up after this long")
	cmd.AddCommand(f.x509(), f.jwt(), f.bundle())
	return cmd
}

// client connects to the agent socket.
func (f *fetcher) client(ctx context.Context) (*workloadapi.Client, context.Context, context.CancelFunc, error) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	endpoint := cli.Endpoint(f.socket)
	options := []workloadapi.ClientOption{workloadapi.WithAddr(endpoint)}
	if f.algorithm != "" {
		options = append(options, workloadapi.WithDialOptions(cli.PreferJWT(f.algorithm)))
	}
	c, err := workloadapi.New(ctx, options...)
	if err != nil {
		cancel()
		return nil, nil, nil, cli.Usagef("agent socket %q: %w", endpoint, err)
	}
	return c, ctx, func() { c.Close(); cancel() }, nil
}

// x509View is an X509-SVID in JSON. The key is in it only when asked for.
type x509View struct {
	SPIFFEID string    `json:"spiffe_id"`
	NotAfter time.Time `json:"not_after"`
	Hint     string    `json:"hint,omitempty"`
	SVID     string    `json:"x509_svid"` // PEM
	Bundle   string    `json:"bundle"`    // PEM
	Files    []string  `json:"files,omitempty"`
}

func (f *fetcher) x509() *cobra.Command {
	var k deliver.Directory
	cmd := &cobra.Command{
		Use:   "x509",
		Short: "Fetch X509-SVIDs",
		Long: `Fetch this process's X509-SVIDs and describe them. With --write, write the
certificates, the keys (readable only by the owner) and the bundle as PEM: svid.0.pem,
svid.0.key and bundle.0.pem for the default identity, then svid.1.pem and so on; and
federated.TRUSTDOMAIN.pem for each trust domain that an entry federates with. Keys are
never printed.

With --follow vouch keeps running. It replaces the files, the key last, whenever the
daemon issues new SVIDs or the bundle changes, notifies the program that reads them, and
removes them on exit. As a service of Type=notify it is ready once the files exist.`,
		Example: `  vouch fetch x509
  vouch fetch x509 --write /run/agent/svid
  vouch fetch x509 --write /run/web/svid --follow --exec 'nginx -s reload'
  vouch fetch x509 --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkDirectoryFlags(&k); err != nil {
				return err
			}
			if k.Follow {
				return f.keepX509(cmd.Context(), &k)
			}
			client, ctx, done, err := f.client(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			got, err := client.FetchX509Context(ctx)
			if err != nil {
				return fmt.Errorf("fetching X509-SVIDs: %w", err)
			}
			views, err := f.x509Views(got, k.Path)
			if err != nil {
				return err
			}
			return f.Print(cmd, views, func(w io.Writer) {
				for _, v := range views {
					fmt.Fprintf(w, "%s\tvalid until %s\n", v.SPIFFEID, v.NotAfter.Format(time.RFC3339))
					for _, file := range v.Files {
						fmt.Fprintf(w, "\twrote %s\n", file)
					}
				}
			})
		},
	}
	directoryFlags(&k, cmd)
	return cmd
}

// keepX509 keeps the SVIDs of this process in files.
func (f *fetcher) keepX509(ctx context.Context, k *deliver.Directory) error {
	client, _, done, err := f.client(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	defer done()
	return k.Keep(ctx, client)
}

func directoryFlags(k *deliver.Directory, cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&k.Path, "write", "", "write PEM files into this `directory`")
	f.BoolVar(&k.Follow, "follow", false, "keep running: replace the files as they are renewed, and remove them on exit")
	f.StringVar(&k.Signal, "signal", "", "send this `signal`, such as HUP, when files have been replaced; needs --pid")
	f.IntVar(&k.PID, "pid", 0, "the `process` to signal; --follow ends when it exits")
	f.StringVar(&k.Command, "exec", "", "run this `command` with sh, for at most a minute, when files have been replaced")
	cmd.MarkFlagDirname("write")
}

// checkDirectoryFlags refuses flags that mean nothing without others.
func checkDirectoryFlags(k *deliver.Directory) error {
	switch {
	case k.Follow && k.Path == "":
		return cli.Usagef("--follow requires --write")
	case !k.Follow && (k.Signal != "" || k.PID != 0 || k.Command != ""):
		return cli.Usagef("--signal, --pid and --exec require --follow")
	}
	return nil
}

func (f *fetcher) x509Views(got *workloadapi.X509Context, dir string) ([]x509View, error) {
	var views []x509View
	for i, svid := range got.SVIDs {
		bundle, err := got.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
		if err != nil {
			return nil, err
		}
		certs, _, err := svid.Marshal()
		if err != nil {
			return nil, err
		}
		v := x509View{
			SPIFFEID: svid.ID.String(),
			NotAfter: svid.Certificates[0].NotAfter,
			Hint:     svid.Hint,
			SVID:     string(certs),
			Bundle:   string(cli.PEM(bundle.X509Authorities())),
		}
		if dir != "" {
			if v.Files, err = deliver.WriteSVID(dir, i, svid, got.Bundles); err != nil {
				return nil, err
			}
		}
		views = append(views, v)
	}
	if dir != "" {
		files, err := deliver.WriteForeign(dir, got)
		if err != nil {
			return nil, err
		}
		views[0].Files = append(views[0].Files, files...)
	}
	return views, nil
}

func (f *fetcher) jwt() *cobra.Command {
	var audience []string
	var id string
	var show bool
	var p deliver.Place
	cmd := &cobra.Command{
		Use:   "jwt --audience AUDIENCE",
		Short: "Fetch JWT-SVIDs",
		Long: `Fetch this process's JWT-SVIDs for an audience. A token is a secret: in text
output it is printed only when standard output is not a terminal, or with
--show.

With --write the token goes to a file, for programs that exchange an identity token
themselves; with --follow vouch keeps running and keeps it fresh. If there are several
identities, it is the default one's, or that of --spiffe-id.`,
		Example: `  vouch fetch jwt --audience https://api.example.org
  vouch fetch jwt --audience a --audience b --spiffe-id spiffe://example.org/agent
  vouch fetch jwt --audience https://api.anthropic.com --write /run/agent/token --follow
  curl -H "Authorization: Bearer $(vouch fetch jwt --audience https://api.example.org)" https://api.example.org`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if p.Path != "" {
				return f.keepToken(cmd.Context(), &p, audience, id)
			}
			for _, name := range fileFlags {
				if cmd.Flags().Changed(name) {
					return cli.Usagef("--%s requires --write", name)
				}
			}
			svids, err := f.jwtSVIDs(cmd.Context(), audience, id)
			if err != nil {
				return err
			}
			views := make([]jwtView, len(svids))
			for i, s := range svids {
				views[i] = jwtView{s.ID.String(), s.Audience, s.Expiry, s.Hint, s.Marshal()}
			}
			return f.Print(cmd, views, func(w io.Writer) {
				for _, v := range views {
					if show || !cli.IsTerminal(w) {
						fmt.Fprintln(w, v.Token)
						continue
					}
					fmt.Fprintf(w, "%s\tvalid until %s\t(--show prints the token)\n", v.SPIFFEID, v.Expires.Format(time.RFC3339))
				}
			})
		},
	}
	cmd.Flags().StringArrayVar(&audience, "audience", nil, "the token's `audience`; may be repeated")
	cmd.Flags().StringVar(&id, "spiffe-id", "", "only the token of this `SPIFFE ID`")
	cmd.Flags().BoolVar(&show, "show", false, "print the token to a terminal")
	placeFlags(&p, cmd)
	return cmd
}

type jwtView struct {
	SPIFFEID string    `json:"spiffe_id"`
	Audience []string  `json:"audience"`
	Expires  time.Time `json:"expires"`
	Hint     string    `json:"hint,omitempty"`
	Token    string    `json:"token"`
}

func (f *fetcher) jwtSVIDs(ctx context.Context, audience []string, id string) ([]*jwtsvid.SVID, error) {
	if len(audience) == 0 {
		return nil, cli.Usagef("--audience is required")
	}
	params := jwtsvid.Params{Audience: audience[0], ExtraAudiences: audience[1:]}
	if id != "" {
		subject, err := spiffeid.FromString(id)
		if err != nil {
			return nil, cli.Usagef("--spiffe-id %q: %w", id, err)
		}
		params.Subject = subject
	}
	client, ctx, done, err := f.client(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	svids, err := client.FetchJWTSVIDs(ctx, params)
	if err != nil {
		return nil, fmt.Errorf("fetching JWT-SVIDs: %w", err)
	}
	return svids, nil
}

func (f *fetcher) bundle() *cobra.Command {
	var other string
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Fetch a trust bundle",
		Long: `Fetch the trust bundle of this host's trust domain: its root certificates and
its JWT keys, in the SPIFFE bundle format. --output text prints the root
certificates as PEM.

With --trust-domain it is another trust domain's, if an entry of this process federates
with it. Bundles of two trust domains never belong in one file: with both, either could
pass for the other.`,
		Example: `  vouch fetch bundle > roots.pem
  vouch fetch bundle --output json > bundle.json
  vouch fetch bundle --trust-domain partner.example > partner.pem`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := f.fetchBundle(cmd.Context(), other)
			if err != nil {
				return err
			}
			if f.Output == "text" {
				_, err := cmd.OutOrStdout().Write(cli.PEM(b.X509Authorities()))
				return err
			}
			doc, err := b.Marshal()
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s\n", doc)
			return nil
		},
	}
	cmd.Flags().StringVar(&other, "trust-domain", "", "another `trust domain`, that of federates_with")
	return cmd
}

// fetchBundle fetches the bundle of a trust domain; of this host's if none is given, which
// an SVID tells.
func (f *fetcher) fetchBundle(ctx context.Context, other string) (*spiffebundle.Bundle, error) {
	client, ctx, done, err := f.client(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	svid, err := client.FetchX509SVID(ctx)
	if err != nil {
		return nil, fmt.Errorf("fetching an X509-SVID: %w", err)
	}
	td := svid.ID.TrustDomain()
	if other != "" {
		if td, err = spiffeid.TrustDomainFromString(other); err != nil {
			return nil, cli.Usagef("--trust-domain %q: %w", other, err)
		}
	}
	agent, err := cli.NewCredentials(f.socket)
	if err != nil {
		return nil, err
	}
	defer agent.Close()
	got, err := agent.Bundle(ctx, td.Name(), td == svid.ID.TrustDomain())
	if err != nil {
		return nil, err
	}
	return cli.SPIFFEBundle(td.Name(), got.X509, got.JWKS, got.Sequence)
}
