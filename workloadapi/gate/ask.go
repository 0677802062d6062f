package gate

import (
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The bounds of an audience.
const (
	MaxAudiences   = 16
	MaxAudienceLen = 512 // bytes of one
)

// CheckAudience refuses an audience that names nobody (Workload API §4.5:
// mandatory fields; JWT-SVID §3.2). The error is a status.
func CheckAudience(audience []string) error {
	if len(audience) == 0 {
		return status.Error(codes.InvalidArgument, "audience is missing")
	}
	if len(audience) > MaxAudiences {
		return status.Errorf(codes.InvalidArgument, "%d audiences are more than %d", len(audience), MaxAudiences)
	}
	for _, a := range audience {
		if a == "" || len(a) > MaxAudienceLen {
			return status.Errorf(codes.InvalidArgument, "an audience has %d bytes; 1 to %d are allowed", len(a), MaxAudienceLen)
		}
	}
	return nil
}

// ParseID parses the SPIFFE ID that a caller asks for; unset is the zero ID. The
// error is a status.
func ParseID(s string) (spiffeid.ID, error) {
	if s == "" {
		return spiffeid.ID{}, nil
	}
	id, err := spiffeid.FromString(s)
	if err != nil {
		return spiffeid.ID{}, status.Errorf(codes.InvalidArgument, "spiffe_id: %v", err)
	}
	return id, nil
}
