package client

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

func TestWordsOfAnErrorHaveNoneOfGRPCs(t *testing.T) {
	t.Parallel()
	refused := status.Error(codes.PermissionDenied, "no identity issued; ask #help (request X)")
	for _, tt := range []struct {
		err  error
		want string
	}{
		{refused, "no identity issued; ask #help (request X)"},
		{fmt.Errorf("fetching X.509-SVIDs: %w", refused), "fetching X.509-SVIDs: no identity issued; ask #help (request X)"},
		{fmt.Errorf("leasing x: %w", callError{status.Convert(refused)}), "leasing x: no identity issued; ask #help (request X)"},
		{status.Error(codes.Unavailable, `connection error: desc = "transport: Error while dialing: dial unix /x: connect: no such file or directory"`), "dial unix /x: connect: no such file or directory; is vouchd running? see: systemctl status vouchd"},
		{status.Error(codes.Unavailable, `connection error: desc = "transport: Error while dialing: dial unix /x: connect: permission denied"`), "dial unix /x: connect: permission denied; this user may not; ask this host's administrator"},
		{status.Error(codes.Unavailable, `connection error: desc = "error reading server preface: read unix @->/x: read: connection reset by peer"`), "read unix @->/x: read: connection reset by peer; is vouchd running? see: systemctl status vouchd"},
		{status.Error(codes.DeadlineExceeded, "context deadline exceeded"), noAnswer},
		{errors.New("plain"), "plain"},
	} {
		if got := Words(tt.err); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.err, got, tt.want)
		}
	}
}

func TestWordsOfASocketThatIsMissingSayWhich(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "agent.sock")
	c, err := New("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _, err = c.Grant(t.Context(), &credentialv1.GrantCredentialRequest{Name: "x"})
	if err == nil {
		t.Fatal("it was leased")
	}
	if got := Words(err); strings.Contains(got, "desc") || strings.Contains(got, "rpc error") || !strings.Contains(got, "dial unix "+path+": connect: no such file or directory; is vouchd running?") {
		t.Errorf("it says %q", got)
	}
}
