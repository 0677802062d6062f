package auditor

import (
	"bytes"
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/state"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// BundleCommands returns the commands below vouch bundle that write documents.
func BundleCommands(o *cli.Options) []*cobra.Command {
	return []*cobra.Command{newBundleJWKS(o), newBundleOpenID(o), newBundleSPIFFE(o)}
}

// publishing is what the documents share.
type publishing struct {
	o     *cli.Options
	write string
}

func (p *publishing) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.write, "write", "", "replace this `file` if its contents changed")
}

// bundle asks the daemon, and holds the issuer, if one is given, to what its tokens
// say: a document with another would be refused with every token.
func (p *publishing) bundle(ctx context.Context, issuer string) (view.Bundle, error) {
	client, err := p.o.Admin()
	if err != nil {
		return view.Bundle{}, err
	}
	view, err := client.Bundle(ctx)
	if err != nil {
		return view, err
	}
	if issuer != "" && issuer != view.JWTIssuer {
		return view, fmt.Errorf("--issuer %s: this host's tokens say %s; give that, or set authority.jwt_issuer", issuer, view.JWTIssuer)
	}
	return view, nil
}

// publish writes a document, with mode 0644: it is for everybody.
func (p *publishing) publish(cmd *cobra.Command, document []byte, goodUntil time.Time) error {
	document = append(document, '\n')
	if p.write == "" {
		_, err := cmd.OutOrStdout().Write(document)
		return err
	}
	there, err := os.ReadFile(p.write)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	done := struct {
		File    string    `json:"file"`
		Changed bool      `json:"changed"`
		Before  time.Time `json:"next_before,omitzero"`
	}{p.write, !bytes.Equal(there, document), goodUntil}
	if done.Changed {
		if err := state.ReplaceFileDurably(p.write, document, state.Mode(0o644)); err != nil {
			return err
		}
	}
	return p.o.Print(cmd, done, func(w io.Writer) {
		verb := "is up to date"
		if done.Changed {
			verb = "is written"
		}
		fmt.Fprintf(w, "%s %s", done.File, verb)
		if !goodUntil.IsZero() {
			fmt.Fprintf(w, "; publish the next before %s", cli.Time(goodUntil))
		}
		fmt.Fprintln(w)
	})
}

func newBundleJWKS(o *cli.Options) *cobra.Command {
	p := publishing{o: o}
	var issuer string
	cmd := &cobra.Command{
		Use:   "jwks",
		Short: "Write the JWT-SVID signing keys for OpenID Connect",
		Long: `Jwks writes the keys that sign JWT-SVIDs now, the keys that sign next, and earlier
keys whose tokens are still valid, as a JWK Set (RFC 7517) with the use and algorithm
that clouds expect.`,
		Example: `  vouch bundle jwks
  vouch bundle jwks --issuer https://id.example.org --write /srv/www/keys`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			view, err := p.bundle(cmd.Context(), issuer)
			if err != nil {
				return err
			}
			document, err := jwksOf(view)
			if err != nil {
				return err
			}
			return p.publish(cmd, document, view.JWKSGoodUntil)
		},
	}
	p.flags(cmd)
	cmd.Flags().StringVar(&issuer, "issuer", "", "fail unless tokens name this `URL` as their issuer")
	return cmd
}

// algorithmOf returns what a key of this kind signs with.
func algorithmOf(k jose.JSONWebKey) string {
	if _, ok := k.Key.(*rsa.PublicKey); ok {
		return string(jose.RS256)
	}
	return string(jose.ES256)
}

// algorithmsOf returns what the keys sign with, each once.
func algorithmsOf(view view.Bundle) (algorithms []string, err error) {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(view.JWKS, &set); err != nil {
		return nil, fmt.Errorf("reading the daemon's keys: %w", err)
	}
	for _, k := range set.Keys {
		if name := algorithmOf(k); !slices.Contains(algorithms, name) {
			algorithms = append(algorithms, name)
		}
	}
	return algorithms, nil
}

// jwksOf returns the keys as relying parties outside SPIFFE want them: use sig
// (RFC 7517 §4.2) in the place of SPIFFE's, and their algorithm.
func jwksOf(view view.Bundle) ([]byte, error) {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(view.JWKS, &set); err != nil {
		return nil, fmt.Errorf("reading the daemon's keys: %w", err)
	}
	for i := range set.Keys {
		set.Keys[i].Use, set.Keys[i].Algorithm = "sig", algorithmOf(set.Keys[i])
	}
	return json.MarshalIndent(set, "", "  ")
}

// A discovery is the OpenID Provider Configuration (OpenID Connect Discovery 1.0
// §3) of an issuer whose tokens are not asked for over the web.
type discovery struct {
	Issuer        string   `json:"issuer"`
	JWKSURI       string   `json:"jwks_uri"`
	Authorization string   `json:"authorization_endpoint"` // required by the standard; there is none
	Responses     []string `json:"response_types_supported"`
	Subjects      []string `json:"subject_types_supported"`
	Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	Claims        []string `json:"claims_supported"`
}

func newBundleOpenID(o *cli.Options) *cobra.Command {
	p := publishing{o: o}
	var issuer, keys string
	cmd := &cobra.Command{
		Use:   "openid-configuration --issuer URL",
		Short: "Write the OpenID Connect discovery document",
		Long: `Openid-configuration writes the document to serve at the issuer's
/.well-known/openid-configuration. It gives the address of the JWK Set: /keys at the
issuer, or --jwks-uri. The issuer must be the one that tokens name
(authority.jwt_issuer). The document changes only if these addresses do, or
authority.jwt_algorithms.`,
		Example: `  vouch bundle openid-configuration --issuer https://id.example.org --write /srv/www/.well-known/openid-configuration`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if issuer == "" {
				return cli.Usagef("--issuer is required")
			}
			if keys == "" {
				keys = strings.TrimSuffix(issuer, "/") + "/keys"
			}
			if u, err := url.Parse(keys); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
				return cli.Usagef("--jwks-uri %q: want an https URL", keys)
			}
			view, err := p.bundle(cmd.Context(), issuer)
			if err != nil {
				return err
			}
			algorithms, err := algorithmsOf(view)
			if err != nil {
				return err
			}
			document, err := json.MarshalIndent(discovery{
				Issuer: issuer, JWKSURI: keys, Authorization: "", Responses: []string{"id_token"}, Subjects: []string{"public"},
				Algorithms: algorithms, Claims: []string{"iss", "sub", "aud", "exp", "iat", "jti"},
			}, "", "  ")
			if err != nil {
				return err
			}
			return p.publish(cmd, document, time.Time{})
		},
	}
	p.flags(cmd)
	cmd.Flags().StringVar(&issuer, "issuer", "", "the issuer's `URL`, as in tokens")
	cmd.Flags().StringVar(&keys, "jwks-uri", "", "`URL` of the published keys (default /keys at the issuer)")
	return cmd
}

func newBundleSPIFFE(o *cli.Options) *cobra.Command {
	p := publishing{o: o}
	cmd := &cobra.Command{
		Use:   "spiffe",
		Short: "Write the trust bundle, for other trust domains",
		Long: `Spiffe writes the trust domain's bundle in the SPIFFE format: root certificates and
JWT keys in one JWK Set, with a sequence number that increases with every change and a
refresh hint. Others federate with it from a file or from an endpoint, such as that of
vouch bundle serve.`,
		Example: `  vouch bundle spiffe > example.org.bundle
  vouch bundle spiffe --write /srv/www/bundle`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			view, err := p.bundle(cmd.Context(), "")
			if err != nil {
				return err
			}
			document, err := spiffeBundleOf(view)
			if err != nil {
				return err
			}
			return p.publish(cmd, document, view.JWKSGoodUntil)
		},
	}
	p.flags(cmd)
	return cmd
}

func spiffeBundleOf(view view.Bundle) ([]byte, error) {
	b, err := cli.SPIFFEBundle(view.TrustDomain, view.X509, view.JWKS, view.Sequence)
	if err != nil {
		return nil, err
	}
	compact, err := b.Marshal()
	if err != nil {
		return nil, err
	}
	var document bytes.Buffer
	err = json.Indent(&document, compact, "", "  ")
	return document.Bytes(), err
}
