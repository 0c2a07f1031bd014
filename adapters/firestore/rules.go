package firestore

import (
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

//go:embed firestore.rules.tmpl
var rulesTemplate string

// UserID stands in a scope for the signed-in user's id.
const UserID = "{uid}"

// ruleSegment is what the path of a match statement takes as it is.
var ruleSegment = regexp.MustCompile(`^[A-Za-z0-9_~.-]+$`)

// Rules returns the security rules (the file firestore.rules) for scopes like
// "users/{uid}" or "apps/notes/users/{uid}", where {uid} is the id of the user whom
// the scope belongs to. messages.ErrRejected when the scope is no such pattern.
func Rules(scope string) (string, error) {
	segments := strings.Split(scope, "/")
	at := slices.Index(segments, UserID)
	if at < 0 || at%2 == 0 || slices.Contains(segments[at+1:], UserID) {
		return "", fmt.Errorf("firestore: the scope %q does not say whose it is: write %s in the place of one document's id, users/%s: %w", scope, UserID, UserID, messages.ErrRejected)
	}
	if err := checkScope(scope); err != nil {
		return "", err
	}
	for i, s := range segments {
		if i != at && !ruleSegment.MatchString(s) {
			return "", fmt.Errorf("firestore: the scope %q has the segment %q, which security rules cannot name: use letters, digits, _ and -: %w", scope, s, messages.ErrRejected)
		}
	}
	path := strings.Replace(scope, UserID, "$(uid)", 1)
	return strings.NewReplacer("SCOPE", scope, "PATH", path).Replace(rulesTemplate), nil
}
