/* JSON (RFC 8259), as much as a line of the protocol needs. */
#include "agent.h"

#define DEEPEST 32

struct reader {
	char *at, *end;
	const char *why;
};

void *allot(void *old, size_t size)
{
	void *made = realloc(old, size ? size : 1);
	if (!made)
		last_words("out of memory");
	return made;
}

static struct json *value(struct reader *in, int depth);

static struct json *bad(struct reader *in, const char *why)
{
	if (!in->why)
		in->why = why;
	return NULL;
}

static void blanks(struct reader *in)
{
	while (in->at < in->end && strchr(" \t\r\n", *in->at))
		in->at++;
}

static bool next_is(struct reader *in, char c)
{
	blanks(in);
	if (in->at >= in->end || *in->at != c)
		return false;
	in->at++;
	return true;
}

static long four_digits(struct reader *in)
{
	char digits[5] = {0}, *stop;
	if (in->end - in->at < 4)
		return -1;
	memcpy(digits, in->at, 4);
	long code = strtol(digits, &stop, 16);
	if (stop != digits + 4 || strspn(digits, "+- ") > 0)
		return -1;
	in->at += 4;
	return code;
}

static char *utf8(char *to, long code)
{
	if (code < 0x80) {
		*to++ = (char)code;
	} else if (code < 0x800) {
		*to++ = (char)(0xc0 | code >> 6);
		*to++ = (char)(0x80 | (code & 63));
	} else if (code < 0x10000) {
		*to++ = (char)(0xe0 | code >> 12);
		*to++ = (char)(0x80 | (code >> 6 & 63));
		*to++ = (char)(0x80 | (code & 63));
	} else {
		*to++ = (char)(0xf0 | code >> 18);
		*to++ = (char)(0x80 | (code >> 12 & 63));
		*to++ = (char)(0x80 | (code >> 6 & 63));
		*to++ = (char)(0x80 | (code & 63));
	}
	return to;
}

/* A text behind its first quote. Its escapes are resolved where it stands: what they mean is never longer. */
static char *string(struct reader *in)
{
	static const char names[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
	char *start = in->at, *to = in->at;
	while (in->at < in->end) {
		char c = *in->at++;
		if (c == '"') {
			*to = 0;
			return start;
		}
		if ((unsigned char)c < 0x20)
			break;
		if (c == '\\') {
			if (in->at >= in->end)
				break;
			char escape = *in->at++;
			const char *name = strchr(names, escape);
			if (escape == 'u') {
				long code = four_digits(in);
				if (code >= 0xd800 && code < 0xdc00 && in->end - in->at > 6 && in->at[0] == '\\' && in->at[1] == 'u') {
					in->at += 2;
					long low = four_digits(in);
					code = low >= 0xdc00 && low < 0xe000 ? 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00) : -1;
				}
				if (code <= 0 || (code >= 0xd800 && code < 0xe000))
					break; /* zero too: no name, address or number has one */
				to = utf8(to, code);
				continue;
			}
			if (!escape || !name)
				break;
			c = meanings[name - names];
		}
		*to++ = c;
	}
	bad(in, "a text that does not end, or with an octet or escape that no text has");
	return NULL;
}

static struct json *make(enum kind kind)
{
	struct json *made = allot(NULL, sizeof *made);
	*made = (struct json){.kind = kind};
	return made;
}

static struct json *collection(struct reader *in, enum kind kind, char end, int depth)
{
	struct json *made = make(kind), **last = &made->first;
	if (next_is(in, end))
		return made;
	do {
		char *key = NULL;
		if (kind == OBJECT) {
			if (!next_is(in, '"') || !(key = string(in)) || !next_is(in, ':')) {
				bad(in, "an object without a key and a colon");
				break;
			}
		}
		if (!(*last = value(in, depth + 1)))
			break;
		(*last)->key = key;
		last = &(*last)->next;
		if (next_is(in, end))
			return made;
	} while (next_is(in, ','));
	bad(in, "an object or array that does not end");
	json_free(made);
	return NULL;
}

static struct json *word(struct reader *in, const char *text, enum kind kind)
{
	size_t length = strlen(text);
	if ((size_t)(in->end - in->at) < length || memcmp(in->at, text, length))
		return bad(in, "a word that is none of JSON's");
	in->at += length;
	return make(kind);
}

static struct json *value(struct reader *in, int depth)
{
	static const char digits[] = "-+.eE0123456789";
	blanks(in);
	if (in->at >= in->end || depth > DEEPEST)
		return bad(in, depth > DEEPEST ? "too deep" : "it ends too early");
	char c = *in->at;
	if (c == '{' || c == '[') {
		in->at++;
		return collection(in, c == '{' ? OBJECT : ARRAY, c == '{' ? '}' : ']', depth);
	}
	if (c == '"') {
		in->at++;
		char *text = string(in);
		if (!text)
			return NULL;
		struct json *made = make(TEXT);
		made->text = text;
		return made;
	}
	if (c == 't')
		return word(in, "true", TRUE);
	if (c == 'f')
		return word(in, "false", FALSE);
	if (c == 'n')
		return word(in, "null", NOTHING);
	if (c != '-' && (c < '0' || c > '9'))
		return bad(in, "an octet that begins no value");
	char copy[64];
	size_t length = 0;
	while (in->at + length < in->end && in->at[length] && strchr(digits, in->at[length]))
		length++;
	if (length >= sizeof copy)
		return bad(in, "a number of too many digits");
	memcpy(copy, in->at, length);
	copy[length] = 0;
	char *stop;
	double number = strtod(copy, &stop);
	if (*stop || (copy[length - 1] < '0' || copy[length - 1] > '9') || (copy[0] == '0' && length > 1 && copy[1] >= '0' && copy[1] <= '9'))
		return bad(in, "a number that is none");
	struct json *made = make(NUMBER);
	made->number = number;
	made->text = strcpy(allot(NULL, length + 1), copy);
	in->at += length;
	return made;
}

/* Whether the octets are UTF-8 (RFC 3629); what a fault repeats of them must be. */
static bool is_utf8(const unsigned char *at, const unsigned char *end)
{
	while (at < end) {
		int more = *at < 0x80 ? 0 : *at < 0xc2 ? -1 : *at < 0xe0 ? 1 : *at < 0xf0 ? 2 : *at < 0xf5 ? 3 : -1;
		if (more < 0 || end - at <= more)
			return false;
		if ((at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xed && at[1] > 0x9f) || (at[0] == 0xf0 && at[1] < 0x90) ||
		    (at[0] == 0xf4 && at[1] > 0x8f))
			return false;
		for (at++; more > 0; more--, at++)
			if ((*at & 0xc0) != 0x80)
				return false;
	}
	return true;
}

struct json *json_read(char *line, size_t length, const char **why)
{
	struct reader in = {line, line + length, NULL};
	if (!is_utf8((unsigned char *)line, (unsigned char *)line + length)) {
		*why = "no UTF-8";
		return NULL;
	}
	struct json *made = value(&in, 0);
	blanks(&in);
	if (made && in.at != in.end) {
		bad(&in, "something behind its end");
		json_free(made);
		made = NULL;
	}
	*why = in.why;
	return made;
}

void json_free(struct json *value)
{
	while (value) {
		struct json *next = value->next;
		json_free(value->first);
		if (value->kind == NUMBER)
			free(value->text);
		free(value);
		value = next;
	}
}

const struct json *json_get(const struct json *object, const char *key)
{
	const struct json *found = NULL;
	if (object && object->kind == OBJECT)
		for (const struct json *each = object->first; each; each = each->next)
			if (!strcmp(each->key, key))
				found = each;
	return found;
}

const char *json_text(const struct json *object, const char *key)
{
	const struct json *found = json_get(object, key);
	return found && found->kind == TEXT ? found->text : NULL;
}

bool json_whole(const struct json *value, double low, double high, double *number)
{
	if (!value || value->kind != NUMBER || value->number < low || value->number > high ||
	    value->number != (double)(int64_t)value->number)
		return false;
	*number = value->number;
	return true;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static void room(struct text *to, size_t more)
{
	if (to->length + more + 1 > to->room) {
		to->room = 2 * to->room + more + 64;
		to->at = allot(to->at, to->room);
	}
}

void put(struct text *to, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	int length = vsnprintf(NULL, 0, format, arguments);
	va_end(arguments);
	room(to, (size_t)length);
	va_start(arguments, format);
	vsnprintf(to->at + to->length, (size_t)length + 1, format, arguments);
	va_end(arguments);
	to->length += (size_t)length;
}

void put_quoted(struct text *to, const char *string)
{
	put(to, "\"");
	for (; *string; string++) {
		unsigned char c = (unsigned char)*string;
		if (c < 0x20 || c == 0x7f)
			put(to, "\\u%04x", c);
		else
			put(to, c == '"' || c == '\\' ? "\\%c" : "%c", c);
	}
	put(to, "\"");
}

void put_hex(struct text *to, const void *octets, size_t count)
{
	static const char digits[] = "0123456789abcdef";
	const unsigned char *from = octets;
	room(to, 2 * count);
	for (size_t i = 0; i < count; i++) {
		to->at[to->length++] = digits[from[i] >> 4];
		to->at[to->length++] = digits[from[i] & 15];
	}
	to->at[to->length] = 0;
}
