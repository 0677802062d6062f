package migrate

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/migrate/jsondoc"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/inventory"
	"github.com/vouchd/vouchd/secret"
)

func newKubeconfig(o *cli.Options) *cobra.Command {
	m := options{Options: o}
	cmd := &cobra.Command{
		Use:   "kubeconfig FILE",
		Short: "Have kubectl ask vouch for its tokens and keys",
		Long: `Kubeconfig seals the tokens and client keys of users in a kubeconfig, and puts vouch as
the credential plug-in in their place. The definitions hand one to whoever is granted it
and asks for the clusters of that user's contexts. A certificate, which is no secret,
stays in the plug-in's arguments.

A cluster that trusts vouchd as an issuer needs no token at all: replace the arguments
with [kubectl-credential, --audience, NAME].`,
		Example: `  vouch migrate kubeconfig ~/.kube/config --dry-run
  vouch migrate kubeconfig ~/.kube/config
  kubectl get pods`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return m.run(cmd, args[0], target{"migrate kubeconfig", inventory.Kubeconfig, planKubeconfig})
		},
	}
	m.flags(cmd)
	return cmd
}

// kubeconfig is what is read of one. It has JSON too, as YAML does.
type kubeconfig struct {
	Clusters []struct {
		Name    string `yaml:"name"`
		Cluster struct {
			Server string `yaml:"server"`
		} `yaml:"cluster"`
	} `yaml:"clusters"`
	Contexts []struct {
		Context struct {
			Cluster string `yaml:"cluster"`
			User    string `yaml:"user"`
		} `yaml:"context"`
	} `yaml:"contexts"`
	Users []struct {
		Name string    `yaml:"name"`
		User yaml.Node `yaml:"user"`
	} `yaml:"users"`
}

// places returns where a user's secret is for.
func (k *kubeconfig) places(user string) (list []string, err error) {
	for _, c := range k.Contexts {
		if c.Context.User != user {
			continue
		}
		for _, cluster := range k.Clusters {
			if cluster.Name != c.Context.Cluster {
				continue
			}
			at, err := credential.NewTarget(credential.Kubernetes, cluster.Cluster.Server)
			if err != nil {
				return nil, fmt.Errorf("its cluster %w", err)
			}
			if place := fmt.Sprintf("{kubernetes: %q}", at.Location); !slices.Contains(list, place) {
				list = append(list, place)
			}
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no context names it with a cluster; remove it")
	}
	return list, nil
}

func planKubeconfig(p *plan) error {
	var config kubeconfig
	if err := yaml.Unmarshal(p.file.Data, &config); err != nil {
		return fmt.Errorf("it is no kubeconfig, or has a name twice") // the parser's words have some of the text in them
	}
	var root *jsondoc.Node
	if first := bytes.TrimLeft(p.file.Data, " \t\r\n"); len(first) > 0 && first[0] == '{' {
		var err error
		if root, err = jsondoc.Parse(p.file.Data); err != nil {
			return err
		}
	}
	vouch, err := program()
	if err != nil {
		return err
	}
	for i := range config.Users {
		u := &config.Users[i]
		if u.User.Kind != yaml.MappingNode || p.keeps("user "+u.Name, u.User.Line) {
			continue
		}
		k := kubeUser{plan: p, name: "user " + inventory.Printable(u.Name), has: make(map[string]*yaml.Node), node: &u.User, vouch: vouch}
		if root != nil {
			k.object = root.Get("users").Members[i].Value.Get("user")
		}
		k.planUser(&config, u.Name)
	}
	if len(p.edits) > 0 {
		p.Then = []string{"kubectl, and whatever has its library, then asks vouch."}
	}
	return nil
}

// A kubeUser is one user of a kubeconfig.
type kubeUser struct {
	*plan
	name   string
	node   *yaml.Node
	object *jsondoc.Node // the same, in JSON
	vouch  string
	has    map[string]*yaml.Node // keys
}

func (k *kubeUser) value(key string) string {
	if v := k.has[key]; v != nil && v.Kind == yaml.ScalarNode {
		return v.Value
	}
	return ""
}

func (k *kubeUser) planUser(config *kubeconfig, name string) {
	for i := 0; i+1 < len(k.node.Content); i += 2 {
		k.has[k.node.Content[i].Value] = k.node.Content[i+1]
	}
	line := k.node.Line
	token, key, cert := k.value("token"), k.value("client-key-data"), k.value("client-certificate-data")
	args := []string{"kubectl-credential"}
	d := definition{item: k.name, given: "to kubectl, by its plug-in"}
	var value []byte
	gone := []string{"token"}
	switch {
	case token == "" && key == "":
		return // an inventory says what else there is
	case k.has["exec"] != nil || k.has["auth-provider"] != nil:
		k.fail(line, "%s has another plug-in too; remove that or the secret", k.name)
		return
	case token != "" && key != "":
		k.fail(line, "%s has a token and a client key, and a plug-in gives one; remove one", k.name)
		return
	case token != "":
		value = []byte(token)
	default:
		decoded, err := base64.StdEncoding.DecodeString(key)
		if err != nil || cert == "" {
			k.leave(k.name, line, "its key is not in base64, or has no client-certificate-data beside it")
			return
		}
		value = decoded
		args = append(args, "--certificate", cert)
		gone = []string{"client-key-data", "client-certificate-data"}
	}
	places, err := config.places(name)
	if err != nil {
		k.leave(k.name, line, "%v", err)
		return
	}
	d.places = places
	if k.object != nil {
		k.editJSON(gone, args)
	} else if !k.editYAML(gone, args) {
		return
	}
	k.seal(d, name, line, secret.Of(value), "a token or client key")
}

// plugin is the plug-in as a kubeconfig has it (client-go credential plugins).
func (k *kubeUser) plugin(args []string) string {
	var list []string
	for _, a := range args {
		list = append(list, quoted(a))
	}
	return fmt.Sprintf(`{"apiVersion": "client.authentication.k8s.io/v1", "command": %s, "args": [%s], "interactiveMode": "Never", "provideClusterInfo": true}`, quoted(k.vouch), strings.Join(list, ", "))
}

func (k *kubeUser) editJSON(gone, args []string) {
	first := -1
	for i, m := range k.object.Members {
		if slices.Contains(gone, m.Name) {
			first = i
			k.edit(m.Start, m.Value.End, `"exec": `+k.plugin(args))
			break
		}
	}
	rest := *k.object
	k.removeMembers(&rest, func(name string) bool {
		return name != k.object.Members[first].Name && slices.Contains(gone, name)
	})
}

// editYAML plans for keys that have a line each. It reports whether they have.
func (k *kubeUser) editYAML(gone, args []string) bool {
	placed := false
	for i := 0; i+1 < len(k.node.Content); i += 2 {
		key := k.node.Content[i]
		if !slices.Contains(gone, key.Value) {
			continue
		}
		from, to, indent, ok := k.lineOf(key, k.node.Content[i+1])
		if !ok {
			k.fail(key.Line, "%s of %s is not on a line of its own; have kubectl write the file anew: kubectl config view --raw", key.Value, k.name)
			return false
		}
		k.hide(from+indent, to)
		if placed {
			k.removeLine(from)
			continue
		}
		placed = true
		k.edit(from+indent, to, "exec: "+k.plugin(args))
	}
	return placed
}

// lineOf returns the line of a key and its value, if they have one to themselves.
func (k *kubeUser) lineOf(key, value *yaml.Node) (from, to, indent int, ok bool) {
	data := k.file.Data
	for range key.Line - 1 {
		i := bytes.IndexByte(data[from:], '\n')
		if i < 0 {
			return 0, 0, 0, false
		}
		from += i + 1
	}
	to = from + len(bytes.TrimRight(data[from:lineEnd(data, from)], " \t\r"))
	indent = key.Column - 1
	if from+indent > to || len(bytes.Trim(data[from:from+indent], " ")) > 0 {
		return 0, 0, 0, false
	}
	var alone map[string]string
	if yaml.Unmarshal(data[from:to], &alone) != nil || len(alone) != 1 || alone[key.Value] != value.Value {
		return 0, 0, 0, false
	}
	return from, to, indent, true
}
