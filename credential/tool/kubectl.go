package tool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/vouchd/vouchd/credential"
)

// execAPI is the version of kubectl's plug-in protocol (client-go credential
// plugins, Kubernetes 1.22 and later).
const execAPI = "client.authentication.k8s.io/v1"

const maxExecInfo = 1 << 20 // bytes: a cluster's CA certificates may be in it

// An ExecInfo is what kubectl tells its plug-in.
type ExecInfo struct {
	server string // of the cluster; empty if kubectl does not say
}

// ParseExecInfo reads KUBERNETES_EXEC_INFO, which some clients do not set.
func ParseExecInfo(info string) (ExecInfo, error) {
	if info == "" {
		return ExecInfo{}, nil // by clients that set nothing
	}
	if len(info) > maxExecInfo {
		return ExecInfo{}, fmt.Errorf("KUBERNETES_EXEC_INFO has %d bytes and may have %d", len(info), maxExecInfo)
	}
	var in struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Spec       struct {
			Cluster struct {
				Server string `json:"server"`
			} `json:"cluster"`
		} `json:"spec"`
	}
	if err := json.Unmarshal([]byte(info), &in); err != nil {
		return ExecInfo{}, errors.New("KUBERNETES_EXEC_INFO is not JSON")
	}
	if in.APIVersion != execAPI || in.Kind != "ExecCredential" {
		return ExecInfo{}, fmt.Errorf("kubectl asks for %.80q of %.80q; set apiVersion: %s in the kubeconfig's exec", in.Kind, in.APIVersion, execAPI)
	}
	return ExecInfo{in.Spec.Cluster.Server}, nil
}

// Target is the cluster that kubectl asks for: the one it says, or else the one
// that its configuration names for it. The two must not differ.
func (i ExecInfo) Target(named string) (credential.Target, error) {
	if i.server == "" && named == "" {
		return credential.Target{}, errors.New("the client does not say which cluster it asks for; set provideClusterInfo: true in the kubeconfig's exec, or give --cluster")
	}
	var asked []credential.Target
	for _, server := range []string{i.server, named} {
		if server == "" {
			continue
		}
		t, err := credential.NewTarget(credential.Kubernetes, server)
		if err != nil {
			return credential.Target{}, fmt.Errorf("cluster %.80q %w", server, err)
		}
		asked = append(asked, t)
	}
	if asked[0] != asked[len(asked)-1] {
		return credential.Target{}, fmt.Errorf("the client asks for cluster %s, and --cluster names %s; remove one", asked[0].Location, asked[1].Location)
	}
	return asked[0], nil
}

// AnswerExec writes a credential as an ExecCredential: a client certificate
// with its key if there is one, and else a token.
func AnswerExec(w io.Writer, fields []credential.Field, expires time.Time) error {
	type status struct {
		Expires     time.Time `json:"expirationTimestamp"`
		Token       string    `json:"token,omitempty"`
		Certificate string    `json:"clientCertificateData,omitempty"`
		Key         string    `json:"clientKeyData,omitempty"`
	}
	s := status{Expires: expires.UTC().Truncate(time.Second), Certificate: text(fields, "certificate"), Key: text(fields, "private_key")}
	if s.Certificate == "" || s.Key == "" {
		token, err := secretOf(fields)
		if err != nil {
			return err
		}
		s.Certificate, s.Key, s.Token = "", "", string(token)
	}
	for _, value := range []string{s.Token, s.Certificate, s.Key} {
		if !utf8.ValidString(value) {
			return errText
		}
	}
	b, err := json.Marshal(struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Status     status `json:"status"`
	}{execAPI, "ExecCredential", s})
	if err != nil {
		return err
	}
	defer clear(b)
	_, err = w.Write(append(b, '\n'))
	return err
}

func text(fields []credential.Field, name string) string {
	if i := slices.IndexFunc(fields, func(f credential.Field) bool { return f.Name == name }); i >= 0 {
		return string(fields[i].Value.Reveal())
	}
	return ""
}
