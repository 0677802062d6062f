package node

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// An unusable is why an object in the TPM is of no use. Whoever may use the TPM can
// make such objects where others are looked for, mostly with an empty authorisation,
// so one that is of no use stops nothing: it is passed over, and named.
type unusable string

func (u unusable) Error() string { return string(u) }

// isUnusable reports whether an error is about one object: it is of no use, or the TPM
// refuses it. What a TPM says about its own state, such as a want of memory, is not.
func isUnusable(err error) bool {
	var why unusable
	var rc tpm2.TPMRC
	return errors.As(err, &why) ||
		errors.As(err, &rc) && !rc.IsWarning() && rc != tpm2.TPMRCFailure && rc != tpm2.TPMRCInitialize
}

// maxNVLen bounds what is read from one NV index, in bytes. Certificates have 1 to 2 KiB.
const maxNVLen = 8 << 10

// readNV reads an NV index that anybody, or the owner, may read. If there is none, the
// error is [tpm2.TPMRCHandle].
func readNV(tr transport.TPM, index tpm2.TPMHandle) ([]byte, error) {
	p, err := tpm2.NVReadPublic{NVIndex: index}.Execute(tr)
	if err != nil {
		return nil, err
	}
	public, err := p.NVPublic.Contents()
	if err != nil {
		return nil, unusable("its public area is malformed")
	}
	h := tpm2.NamedHandle{Handle: index, Name: p.NVName}
	owner := tpm2.NamedHandle{Handle: tpm2.TPMRHOwner, Name: tpm2.HandleName(tpm2.TPMRHOwner)}
	by := owner
	switch a := public.Attributes; {
	case a.NT != tpm2.TPMNTOrdinary:
		return nil, unusable("it counts or is extended, and holds no data")
	case !a.Written:
		return nil, unusable("it was never written")
	case public.DataSize == 0:
		return nil, unusable("it is empty")
	case public.DataSize > maxNVLen:
		return nil, unusable(fmt.Sprintf("its %d bytes are more than %d", public.DataSize, maxNVLen))
	case a.AuthRead && a.NoDA:
		by = h
	case !a.OwnerRead:
		// A wrong password would count towards the TPM's lockout.
		return nil, unusable("it is not for everybody to read")
	}
	data := make([]byte, 0, public.DataSize)
	const step = 512 // bytes, what every TPM can read at once
	for len(data) < int(public.DataSize) {
		r, err := tpm2.NVRead{
			AuthHandle: withAuth(by, tpm2.PasswordAuth(nil)),
			NVIndex:    h,
			Size:       min(step, public.DataSize-uint16(len(data))),
			Offset:     uint16(len(data)),
		}.Execute(tr)
		if err != nil && by.Handle == index && public.Attributes.OwnerRead && isUnusable(err) {
			by = owner // the index has a password, and the owner may have none
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading it: %w", err)
		}
		if len(r.Data.Buffer) == 0 {
			return nil, unusable(fmt.Sprintf("it has no data at %d", len(data)))
		}
		data = append(data, r.Data.Buffer...)
	}
	return data, nil
}

// listHandles returns the handles in a range that are in use.
func listHandles(tr transport.TPM, first, last tpm2.TPMHandle) (handles []tpm2.TPMHandle, err error) {
	for next := first; next <= last; {
		r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(next), PropertyCount: uint32(last - next + 1)}.Execute(tr)
		if err != nil {
			return nil, err
		}
		l, err := r.CapabilityData.Data.Handles()
		if err != nil {
			return nil, err
		}
		for _, h := range l.Handle {
			if h < next || h > last {
				return handles, nil
			}
			handles = append(handles, h)
			next = h + 1
		}
		if len(l.Handle) == 0 || !r.MoreData {
			break
		}
	}
	return handles, nil
}
