package process

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
)

const (
	imaFile    = "/sys/kernel/security/ima/ascii_runtime_measurements"
	maxIMA     = 1 << 20  // digests that are kept
	maxIMALine = 64 << 10 // bytes
)

// A measurements holds the digests of files that the kernel has measured since
// boot (IMA). The kernel only appends to its list.
type measurements struct {
	mu    sync.Mutex // guards the fields below
	list  *bufio.Reader
	files map[measured]bool
}

// A measured file is what the kernel notes of one: it measures another file with
// the same contents again.
type measured struct{ sha256, path string }

// theseMeasurements opens the kernel's list, or returns nil if it has none.
func theseMeasurements() *measurements {
	f, err := os.Open(imaFile)
	if err != nil {
		return nil
	}
	return newMeasurements(f)
}

func newMeasurements(list io.Reader) *measurements {
	return &measurements{list: bufio.NewReaderSize(list, maxIMALine), files: make(map[measured]bool)}
}

// has reports whether the kernel has measured a file with that digest at the
// path.
func (m *measurements) has(sum, path string) (bool, error) {
	if m == nil || sum == "" || path == "" {
		return false, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for want := (measured{sum, path}); !m.files[want]; {
		line, err := m.list.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return false, nil // reading goes on here when the list has grown
		}
		if err != nil {
			return false, err
		}
		if f := parseMeasurement(string(line)); f.sha256 != "" && len(m.files) < maxIMA {
			m.files[f] = true
		}
	}
	return true, nil
}

// parseMeasurement returns the SHA-256 and the path in a line of the list, or
// nothing: "10 TEMPLATE-DIGEST ima-ng sha256:FILE-DIGEST PATH". Templates of what
// is not a file (ima-buf) do not count.
func parseMeasurement(line string) measured {
	fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 5)
	if len(fields) < 5 || fields[2] != "ima-ng" && fields[2] != "ima-sig" && fields[2] != "ima-modsig" {
		return measured{}
	}
	sum, ok := strings.CutPrefix(fields[3], "sha256:")
	if !ok || len(sum) != 64 || strings.Trim(sum, "0123456789abcdef") != "" || strings.Trim(sum, "0") == "" {
		return measured{} // all zero: a violation, measured while it was written to
	}
	// A signature stands behind the path, and in ima-modsig two fields more.
	path := fields[4]
	for range map[string]int{"ima-ng": 0, "ima-sig": 1, "ima-modsig": 3}[fields[2]] {
		end := strings.LastIndexByte(path, ' ')
		if end < 0 {
			return measured{}
		}
		path = path[:end]
	}
	return measured{sum, path}
}
