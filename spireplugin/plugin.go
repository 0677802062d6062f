// Package spireplugin is vouchd-spire, a plug-in of SPIRE's server. As NodeAttestor it admits
// hosts by their TPM, as vouch node appraise judges them; as CredentialComposer it sees to it
// that an agent's SVID is for a key of that TPM. SPIRE runs the program once for each of the
// two, and they share nothing: the ID that the first gives a host is that of the key, to
// which the second holds what is about to be signed.
package spireplugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/spireplugin/pluginv1"
)

// The types of plug-ins, by which SPIRE also says which one it wants (go-plugin's magic
// cookie: a variable of this name and value).
const (
	NodeAttestor       = "NodeAttestor"
	CredentialComposer = "CredentialComposer"
)

// ErrNotSPIRE means that the program was not started by SPIRE's server.
var ErrNotSPIRE = errors.New("vouchd-spire is a plug-in: spire-server starts it, as plugin_cmd of a NodeAttestor and a CredentialComposer; see vouchd-spire --help")

// Serve serves what SPIRE wants until it ends the plug-in. The log goes to logs, as SPIRE
// reads it.
func Serve(getenv func(string) string, logs io.Writer) error {
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: logs, JSONFormat: true})
	for _, kind := range []string{NodeAttestor, CredentialComposer} {
		if getenv(kind) != kind {
			continue
		}
		goplugin.Serve(&goplugin.ServeConfig{
			HandshakeConfig: goplugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: kind, MagicCookieValue: kind},
			Plugins:         map[string]goplugin.Plugin{kind: &plugin{kind: kind, log: log}},
			Logger:          log,
			GRPCServer:      goplugin.DefaultGRPCServer,
		})
		return nil
	}
	return ErrNotSPIRE
}

// A plugin registers the services of one type.
type plugin struct {
	goplugin.NetRPCUnsupportedPlugin
	kind string
	log  hclog.Logger
}

// GRPCServer implements [goplugin.GRPCPlugin].
func (p *plugin) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	a := &attestor{log: p.log}
	services := []string{pluginv1.Config_ServiceDesc.ServiceName}
	switch p.kind {
	case NodeAttestor:
		pluginv1.RegisterNodeAttestorServer(s, a)
		services = append(services, pluginv1.NodeAttestor_ServiceDesc.ServiceName)
		pluginv1.RegisterConfigServer(s, configurer{apply: a.configure})
	case CredentialComposer:
		c := new(composer)
		pluginv1.RegisterCredentialComposerServer(s, c)
		services = append(services, pluginv1.CredentialComposer_ServiceDesc.ServiceName)
		pluginv1.RegisterConfigServer(s, configurer{apply: c.configure})
	}
	pluginv1.RegisterInitServer(s, initializer{services: services})
	return nil
}

// GRPCClient implements [goplugin.GRPCPlugin].
func (p *plugin) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("vouchd-spire is no client")
}

// An initializer tells SPIRE which services there are.
type initializer struct {
	pluginv1.UnimplementedInitServer
	services []string
}

// Init implements [pluginv1.InitServer].
func (i initializer) Init(context.Context, *pluginv1.InitRequest) (*pluginv1.InitResponse, error) {
	return &pluginv1.InitResponse{PluginServiceNames: i.services}, nil
}

// Deinit implements [pluginv1.InitServer].
func (initializer) Deinit(context.Context, *pluginv1.DeinitRequest) (*pluginv1.DeinitResponse, error) {
	return new(pluginv1.DeinitResponse), nil
}

// A configurer takes configurations. Apply puts one in force, unless it is only tried.
type configurer struct {
	pluginv1.UnimplementedConfigServer
	apply func(trustDomain, hcl string, try bool) error
}

// Configure implements [pluginv1.ConfigServer].
func (c configurer) Configure(_ context.Context, r *pluginv1.ConfigureRequest) (*pluginv1.ConfigureResponse, error) {
	if err := c.apply(r.GetCoreConfiguration().GetTrustDomain(), r.GetHclConfiguration(), false); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return new(pluginv1.ConfigureResponse), nil
}

// Validate implements [pluginv1.ConfigServer].
func (c configurer) Validate(_ context.Context, r *pluginv1.ValidateRequest) (*pluginv1.ValidateResponse, error) {
	if err := c.apply(r.GetCoreConfiguration().GetTrustDomain(), r.GetHclConfiguration(), true); err != nil {
		return &pluginv1.ValidateResponse{Notes: []string{err.Error()}}, nil
	}
	return &pluginv1.ValidateResponse{Valid: true}, nil
}

// A file is one whose contents are parsed, and parsed again once they change. A change that
// cannot be parsed keeps what was there.
type file[T any] struct {
	path  string
	parse func(path string, text []byte) (T, error)

	mu    sync.Mutex // guards the fields below
	value T
	text  string
	told  string // the problem that was told last
}

// open parses the file for the first time.
func open[T any](path string, parse func(string, []byte) (T, error)) (*file[T], error) {
	f := &file[T]{path: path, parse: parse}
	text, err := os.ReadFile(path)
	if err == nil {
		f.value, err = parse(path, text)
	}
	f.text = string(text)
	return f, err
}

// now returns what is in force. Problem is not empty where the file is another, and of no use;
// it is told once.
func (f *file[T]) now() (value T, problem string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	text, err := os.ReadFile(f.path)
	if err == nil && string(text) != f.text {
		var next T
		if next, err = f.parse(f.path, text); err == nil {
			f.value, f.text = next, string(text)
		}
	}
	told := f.told
	f.told = ""
	if err != nil {
		f.told = fmt.Sprintf("keeping the former %s: %v", f.path, err)
	}
	if f.told != told {
		return f.value, f.told
	}
	return f.value, ""
}
