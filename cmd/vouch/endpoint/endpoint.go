// Package endpoint serves this trust domain's bundle to others (SPIFFE Federation §5.2).
//
// It runs as a workload: the agent socket gives it its SVID and the bundle, as it would any
// process, and it holds nothing that others may not see but its own TLS key. So what faces
// the network is not the daemon, and can't issue.
package endpoint

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/systemd"
)

// The profiles of an endpoint.
const (
	profileSPIFFE = "https_spiffe"
	profileWeb    = "https_web"
)

// serving is the command's flags.
type serving struct {
	*cli.Options
	socket    string
	listen    string
	profile   string
	cert, key string
	path      string
}

// A view is what is served, in JSON.
type view struct {
	TrustDomain string `json:"trust_domain"`
	Profile     string `json:"profile"`
	SPIFFEID    string `json:"endpoint_spiffe_id,omitempty"` // that https_spiffe proves
	Address     string `json:"address"`
	Path        string `json:"path"`
	Sequence    uint64 `json:"sequence,omitempty"` // missing: the agent does not say
}

// Command returns vouch bundle serve.
func Command(o *cli.Options) *cobra.Command {
	s := &serving{Options: o}
	cmd := &cobra.Command{
		Use:   "serve --listen ADDRESS",
		Short: "Serve the trust bundle to other trust domains",
		Long: `Serve runs a bundle endpoint (SPIFFE Federation): over HTTPS it answers GET with the
bundle of this host's trust domain, and nothing else. It is an ordinary workload: an
entry gives it its identity, and it follows rotation.

Profile https_spiffe proves itself by that identity's X509-SVID. Others configure the
SPIFFE ID, and need the bundle once by another way: vouch bundle spiffe writes it.
Profile https_web proves itself by a certificate of the Web PKI in files, which are read
again when they change.`,
		Example: `  vouch bundle serve --listen :8443
  vouch bundle serve --listen 192.0.2.7:443 --path /spiffe/bundle
  vouch bundle serve --listen :443 --profile https_web --cert fullchain.pem --key privkey.pem`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.check(); err != nil {
				return err
			}
			return s.run(cmd.Context(), cmd)
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.listen, "listen", "", "`address` to listen on, HOST:PORT or :PORT")
	f.StringVar(&s.profile, "profile", profileSPIFFE, "https_spiffe or https_web")
	f.StringVar(&s.cert, "cert", "", "`file` with the certificate and its chain, PEM; with https_web")
	f.StringVar(&s.key, "key", "", "`file` with the certificate's key, PEM; with https_web")
	f.StringVar(&s.path, "path", "/bundle", "`path` of the URL")
	f.StringVar(&s.socket, "socket", "", "agent socket, as `unix:///path`")
	cmd.RegisterFlagCompletionFunc("profile", cobra.FixedCompletions([]string{profileSPIFFE, profileWeb}, cobra.ShellCompDirectiveNoFileComp))
	cmd.MarkFlagFilename("cert")
	cmd.MarkFlagFilename("key")
	return cmd
}

func (s *serving) check() error {
	web, files := s.profile == profileWeb, s.cert != "" || s.key != ""
	switch {
	case s.listen == "":
		return cli.Usagef("--listen is required, such as :8443")
	case !web && s.profile != profileSPIFFE:
		return cli.Usagef("--profile %q: want %s or %s", s.profile, profileSPIFFE, profileWeb)
	case web && (s.cert == "" || s.key == ""):
		return cli.Usagef("--profile %s requires --cert and --key", profileWeb)
	case !web && files:
		return cli.Usagef("--cert and --key require --profile %s; %s uses this process's SVID", profileWeb, profileSPIFFE)
	case !strings.HasPrefix(s.path, "/") || path.Clean(s.path) != s.path || strings.ContainsAny(s.path, "?#"):
		return cli.Usagef("--path %q: want a plain path such as /bundle", s.path)
	}
	if _, _, err := net.SplitHostPort(s.listen); err != nil {
		return cli.Usagef("--listen %q: %w", s.listen, err)
	}
	return nil
}

func (s *serving) run(ctx context.Context, cmd *cobra.Command) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	endpoint := cli.Endpoint(s.socket)
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(endpoint))
	if err != nil {
		return cli.Usagef("agent socket %q: %w", endpoint, err)
	}
	defer client.Close()
	source, err := s.svids(ctx, client)
	if err != nil {
		return err
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	bundle, err := follow(ctx, client, endpoint, svid.ID.TrustDomain(), log)
	if err != nil {
		return err
	}
	config, err := s.tls(source, log)
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", s.listen)
	if err != nil {
		return err
	}
	v := view{TrustDomain: svid.ID.TrustDomain().Name(), Profile: s.profile, Address: listener.Addr().String(), Path: s.path, Sequence: bundle.sequence()}
	if s.profile == profileSPIFFE {
		v.SPIFFEID = svid.ID.String()
	}
	if err := s.Print(cmd, v, func(w io.Writer) {
		as := ""
		if v.SPIFFEID != "" {
			as = " as " + v.SPIFFEID
		}
		fmt.Fprintf(w, "serving the bundle of %s at https://%s%s%s\n", v.TrustDomain, v.Address, v.Path, as)
	}); err != nil {
		return errors.Join(err, listener.Close())
	}
	if err := systemd.Ready("Serving the bundle of " + v.TrustDomain); err != nil {
		return errors.Join(err, listener.Close())
	}
	defer systemd.Stopping()
	return serve(ctx, listener, config, s.path, bundle)
}

// svids follows this process's X509-SVIDs. By them it knows its trust domain, whatever it
// proves itself by.
func (s *serving) svids(ctx context.Context, client *workloadapi.Client) (*workloadapi.X509Source, error) {
	first, cancel := context.WithTimeout(ctx, firstAnswer)
	defer cancel()
	// The source tries again, whatever the agent says; this doesn't.
	if _, err := client.FetchX509SVID(first); err != nil {
		return nil, fmt.Errorf("fetching this process's X509-SVID: %w", err)
	}
	return workloadapi.NewX509Source(first, workloadapi.WithClient(client))
}

// tls asks no client for a certificate (Federation §5.2.1.3, §5.2.2.3), and offers what
// Mozilla's intermediate configuration does (§5).
func (s *serving) tls(source *workloadapi.X509Source, log *slog.Logger) (*tls.Config, error) {
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
	if s.profile == profileSPIFFE {
		config.GetCertificate = tlsconfig.GetCertificate(source)
		return config, nil
	}
	pair, err := loadPair(s.cert, s.key, log)
	if err != nil {
		return nil, err
	}
	config.GetCertificate = pair.get
	return config, nil
}
