package bundle

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func FuzzParseList(f *testing.F) {
	for _, seed := range []string{"0-3,7", "", "1-", "9-0", "0-65535,0-65535", "-1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseList(text)
		if err == nil && (len(list) == 0 || len(list) > 1<<17) {
			t.Errorf("%q gave %d numbers", text, len(list))
		}
	})
}

// The account files are the image's: whatever is in them gives ids or an
// error that names the user.
func FuzzAccounts(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\n", "video:x:44:root\n", "root:video")
	f.Add(":::\n\x00", "a:b:c:d,e\n", "4294967296")
	dir := f.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, passwd, group, name string) {
		for file, text := range map[string]string{"etc/passwd": passwd, "etc/group": group} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r, err := openRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		u, home, err := lookUp(r, name, nil)
		if err == nil && (u.UID > 1<<31-1 || u.GID > 1<<31-1 || home == "") {
			t.Errorf("%+v, home %q", u, home)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "user ") {
			t.Error(err)
		}
	})
}
