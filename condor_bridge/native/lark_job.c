/* lark_job.c: HTCondor's native hooks, job wrapper and file-transfer plugin wrapper for Lark.
 *
 * One source, installed twice. LIBEXEC/lark-job has the file capability cap_sys_admin and enters the network namespace
 * that the agent passes; LIBEXEC/lark-hook has none and only talks. Which tool it is, it knows from the
 * last part of the path it was executed by (the kernel's AT_EXECFN; startd cron gives argv[0] a name of its own):
 *
 *   lark-job-wrapper   USER_JOB_WRAPPER: enter the attempt's network, become powerless, run argv[1..] as a child, wait for
 *                      it, tell the agent that it has exited, end as it did
 *   plugins/NAME       a file-transfer plugin: the same, then exec the program named in plugins/NAME.real
 *   lark-hook-prepare  PREPARE_JOB_BEFORE_TRANSFER: an attempt begins; a refusal is printed as a hold
 *   lark-hook-exit     JOB_EXIT: the job has exited (of configurations rendered before the wrapper waited for the job)
 *   lark-ping          startd cron: print whether this node can give jobs a network
 *   lark-job check     tell whether the file capability works where it was installed
 *
 * How a job gets into its network is the administrator's choice, one word in the root-owned LIBEXEC/lark-attach:
 *
 *   capability   (or no file) the agent passes the attempt's namespace, setns by the file capability
 *   userns       no capability: this process makes a user and a network namespace, the agent plugs the lane into it
 *   starter      no capability: HTCondor 25's starter made an empty network namespace, the agent plugs the lane into it
 *
 * Invariants. Any local user may run this with any arguments, environment and descriptors, so: nothing but root-owned
 * files beside the binary says where the agent and the real plugins are; the other end of the socket must be uid 0; what
 * it passes must be a network namespace and not the one we are in. A job or plugin is never executed outside its
 * network: whatever goes wrong is told and ends in a non-zero exit. Nothing is executed with a capability: all sets are
 * emptied and read back. The job's ad and environment are never stored or logged. Without the capability the loader would
 * obey the owner's LD_PRELOAD, and the owner's code could leave out the attachment: so for userns and starter the helper
 * is linked statically, and refuses to work if it is not. Never is one way tried after another has failed.
 * The parent that waits for the job has no capability, holds none of its files, is in its network and can be neither
 * traced nor dumped; nothing that goes wrong in it changes how the job ends.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/nsfs.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

/* Milliseconds; only builds for tests set others. The agent itself gives up after 60 s, HTCondor kills a prepare hook
 * after 120 s and an exit hook after 30 s. A job's end waits for LARK_GONE_MS and LARK_EXITED_MS at the most. */
#ifndef LARK_ANSWER_MS
#define LARK_ANSWER_MS 75000
#endif
#ifndef LARK_EXIT_MS
#define LARK_EXIT_MS 20000
#endif
#ifndef LARK_EXITED_MS /* the agent asks the controller for 2 s at the most, and the starter for 3 s */
#define LARK_EXITED_MS 6000
#endif
#ifndef LARK_GONE_MS /* an agent that is not there is not waited for long: the job is over */
#define LARK_GONE_MS 1000
#endif
#ifndef LARK_PING_MS
#define LARK_PING_MS 5000
#endif
#ifndef LARK_CONNECT_MS /* an agent that is being restarted is waited for, this long */
#define LARK_CONNECT_MS 10000
#endif

#define DEFAULT_SOCKET "/run/lark/agent.sock"
#define REPLY_MAX 1024
#define TEXT_MAX 1400
enum { HOLD_POLICY = 101, HOLD_AGENT = 103, HOLD_REFUSED = 105 };
enum attach { BY_CAPABILITY, BY_USERNS, BY_STARTER };

struct answer {
    int hold;             /* 0: granted; else the hold subcode */
    int fd;               /* the namespace, or -1 */
    char text[TEXT_MAX];  /* why not */
};

static int libexec_dir = -1;
static enum attach attach; /* set by open_libexec */
static char libexec_path[4096];
static char agent_path[512] = DEFAULT_SOCKET; /* as lark-socket says, once it was read */

static long long now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static void pause_ms(long ms) {
    struct timespec t = {ms / 1000, (ms % 1000) * 1000000L};
    nanosleep(&t, NULL);
}

__attribute__((format(printf, 3, 4))) static bool deny(struct answer *a, int hold, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(a->text, sizeof a->text, format, args);
    va_end(args);
    a->hold = hold;
    if (a->fd >= 0) close(a->fd);
    a->fd = -1;
    return false;
}

static bool in_user_namespace(void) {
    char map[64];
    unsigned inside = 1, outside = 1, count = 0;
    int fd = open("/proc/self/uid_map", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, map, sizeof map - 1);
    if (fd >= 0) close(fd);
    map[n > 0 ? n : 0] = 0;
    return sscanf(map, "%u %u %u", &inside, &outside, &count) != 3 || inside || outside || count != 4294967295u;
}

static int root_line(struct answer *a, const char *name, char *line, size_t size);

/* The administrator's word. Nothing else chooses: not the environment, not what happens to work. */
static bool read_attach(struct answer *a) {
    char word[64] = "capability";
    if (root_line(a, "lark-attach", word, sizeof word) < 0) return false;
    if (strcmp(word, "capability") == 0) attach = BY_CAPABILITY;
    else if (strcmp(word, "userns") == 0) attach = BY_USERNS;
    else if (strcmp(word, "starter") == 0) attach = BY_STARTER;
    else return deny(a, HOLD_AGENT, "lark-attach beside the helper says %.60s, which is none of: capability, userns, starter", word);
    return true;
}

/* The directory of this binary, if it is root's alone: everything read from it decides whom we believe. A hard link of
 * the binary in a directory of the user's ends here. */
static bool open_libexec(struct answer *a) {
    char *path = libexec_path;
    struct stat st;
    if (in_user_namespace()) /* root's files do not look like root's here, and the capability does nothing */
        return deny(a, HOLD_AGENT, "in a user namespace the helper's file capability does nothing; HTCondor must run outside of one");
    ssize_t n = readlink("/proc/self/exe", path, sizeof libexec_path - 1);
    if (n <= 0) return deny(a, HOLD_AGENT, "cannot read /proc/self/exe: %s", strerror(errno));
    path[n] = 0;
    char *slash = strrchr(path, '/');
    if (!slash || slash == path) return deny(a, HOLD_AGENT, "the helper lies in no directory of its own");
    *slash = 0;
    libexec_dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (libexec_dir < 0 || fstat(libexec_dir, &st)) return deny(a, HOLD_AGENT, "cannot open %.900s: %s", path, strerror(errno));
    if (st.st_uid != 0 || st.st_mode & 022) return deny(a, HOLD_AGENT, "%.900s must belong to root and be writable by nobody else", path);
    return read_attach(a);
}

/* First line of a root-owned regular file below LIBEXEC. 1: read, 0: there is none, -1: error (told in a). */
static int root_line(struct answer *a, const char *name, char *line, size_t size) {
    struct stat st;
    int fd = openat(libexec_dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT) return 0;
    if (fd < 0 || fstat(fd, &st)) {
        deny(a, HOLD_AGENT, "cannot read %.200s beside the helper: %s", name, strerror(errno));
        return -1;
    }
    if (!S_ISREG(st.st_mode) || st.st_uid != 0 || st.st_mode & 022) {
        close(fd);
        deny(a, HOLD_AGENT, "%.200s beside the helper must be a file of root, writable by nobody else", name);
        return -1;
    }
    ssize_t n = read(fd, line, size - 1);
    close(fd);
    line[n > 0 ? n : 0] = 0;
    line[strcspn(line, "\r\n")] = 0;
    if (n <= 0 || (size_t)n >= size - 1 || !line[0]) {
        deny(a, HOLD_AGENT, "%.200s beside the helper must hold one short line", name);
        return -1;
    }
    return 1;
}

/* A connection to the agent, its other end checked if its answer will be believed; or -1. */
static int connect_agent(struct answer *a, const char *path, int connect_ms, bool check) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        deny(a, HOLD_AGENT, "the socket path %.300s is longer than %zu bytes", path, sizeof address.sun_path - 1);
        return -1;
    }
    strcpy(address.sun_path, path);
    for (long long end = now_ms() + connect_ms;;) {
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) {
            deny(a, HOLD_AGENT, "cannot make a socket: %s", strerror(errno));
            return -1;
        }
        if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) {
            struct ucred peer = {.uid = (uid_t)-1};
            socklen_t size = sizeof peer;
            if (!check || (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == 0)) return fd;
            close(fd);
            deny(a, HOLD_AGENT, "what listens on %s is not root but uid %u: not the agent", path, peer.uid);
            return -1;
        }
        int why = errno;
        close(fd);
        /* Not there, nobody listening, or its queue is full (EAGAIN): it may be starting, or busy. */
        if ((why != ENOENT && why != ECONNREFUSED && why != EAGAIN && why != EINTR) || now_ms() >= end) {
            deny(a, HOLD_AGENT, "the agent does not answer on %s: %s; is lark-agent running on this node?", path, strerror(why));
            return -1;
        }
        pause_ms(100);
    }
}

/* The agent, where LIBEXEC/lark-socket says; or -1. */
static int reach_agent(struct answer *a, int connect_ms) {
    if (root_line(a, "lark-socket", agent_path, sizeof agent_path) < 0) return -1;
    if (agent_path[0] != '/') {
        deny(a, HOLD_AGENT, "lark-socket beside the helper must hold one absolute path");
        return -1;
    }
    return connect_agent(a, agent_path, connect_ms, true);
}

/* One request, one reply; closes fd. Fills a; true when the agent said ok. A passed descriptor is in a->fd, and only then. */
static bool converse(struct answer *a, int fd, const char *request, int answer_ms) {
    char reply[REPLY_MAX + 2];
    union { struct cmsghdr align; char bytes[CMSG_SPACE(4 * sizeof(int))]; } control;
    long long end = now_ms() + answer_ms;
    ssize_t n = send(fd, request, strlen(request), MSG_NOSIGNAL);
    if (n != (ssize_t)strlen(request)) {
        int why = errno;
        close(fd);
        return deny(a, HOLD_AGENT, "cannot send to the agent: %s", strerror(why));
    }
    struct iovec iov = {reply, REPLY_MAX + 1};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    for (;;) {
        long long left = end - now_ms();
        struct pollfd p = {fd, POLLIN, 0};
        int ready = left > 0 ? poll(&p, 1, (int)left) : 0;
        if (ready == 0) {
            close(fd);
            return deny(a, HOLD_AGENT, "the agent has not answered within %d s", answer_ms / 1000);
        }
        if (ready < 0 && errno == EINTR) continue;
        n = ready < 0 ? -1 : recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        break;
    }
    int why = errno, passed = 0;
    close(fd);
    if (n >= 0)
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
            if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
            for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
                int got;
                memcpy(&got, CMSG_DATA(c) + i * sizeof got, sizeof got);
                if (passed++ == 0) a->fd = got;
                else close(got);
            }
        }
    if (n < 0) return deny(a, HOLD_AGENT, "cannot read the agent's answer: %s", strerror(why));
    if (n == 0) return deny(a, HOLD_AGENT, "the agent closed the connection without an answer; was it restarted?");
    if (n > REPLY_MAX || message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || passed > 1)
        return deny(a, HOLD_AGENT, "the agent's answer is too long or passes too much: do agent and helper fit together?");
    reply[n] = 0;
    for (ssize_t i = 0; i < n; i++)
        if (reply[i] < ' ' || reply[i] > '~') return deny(a, HOLD_AGENT, "the agent's answer is not plain text");
    if (strcmp(reply, "ok") == 0) {
        a->hold = 0;
        return true;
    }
    if (strncmp(reply, "refused ", 8) == 0) return deny(a, HOLD_REFUSED, "refused by the agent: %s", reply + 8);
    if (strncmp(reply, "hold ", 5) == 0) {
        char *rest;
        long code = strtol(reply + 5, &rest, 10);
        if (reply[5] >= '1' && reply[5] <= '9' && *rest == ' ' && code >= 100 && code <= 199) return deny(a, (int)code, "%s", rest + 1);
    }
    return deny(a, HOLD_AGENT, "the agent answered nonsense: do agent and helper fit together?");
}

static bool ask(struct answer *a, const char *request, int answer_ms, int connect_ms) {
    int fd = reach_agent(a, connect_ms);
    return fd >= 0 && converse(a, fd, request, answer_ms);
}

static bool capabilities(struct answer *a, bool *has_admin) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data)) return deny(a, HOLD_AGENT, "capget: %s", strerror(errno));
    *has_admin = data[CAP_TO_INDEX(CAP_SYS_ADMIN)].effective & CAP_TO_MASK(CAP_SYS_ADMIN);
    return true;
}

/* Empty every capability set of this process and read them back. */
static bool become_powerless(struct answer *a) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0}};
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) || syscall(SYS_capset, &header, data))
        return deny(a, HOLD_AGENT, "cannot give up capabilities: %s", strerror(errno));
    memset(data, 0xff, sizeof data);
    if (syscall(SYS_capget, &header, data)) return deny(a, HOLD_AGENT, "capget: %s", strerror(errno));
    for (int i = 0; i < 2; i++)
        if (data[i].effective | data[i].permitted | data[i].inheritable) return deny(a, HOLD_AGENT, "capabilities are left after giving them up");
    for (int cap = 0; cap < 64; cap++) {
        int set = prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0);
        if (set > 0) return deny(a, HOLD_AGENT, "ambient capability %d is left after giving it up", cap);
        if (set < 0) break; /* beyond the last one this kernel knows */
    }
    return true;
}

/* Why does the file capability not work? Told before the agent is asked, so that nothing has happened yet. */
static bool able_to_enter(struct answer *a) {
    bool able = false;
    struct statvfs mount;
    if (geteuid() == 0 || getuid() == 0)
        return deny(a, HOLD_AGENT, "will not run a job as root: it would have every capability again after exec");
    if (!capabilities(a, &able)) return false;
    if (attach != BY_CAPABILITY) {
        if (able || getauxval(AT_SECURE) || getauxval(AT_BASE)) /* AT_BASE: a loader, which obeys LD_PRELOAD */
            return deny(a, HOLD_AGENT, "lark-attach says userns or starter, but the helper was not installed for that; run condor_bridge.native_install --attach again");
        return true;
    }
    if (able) return true;
    if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)
        return deny(a, HOLD_AGENT, "no_new_privs is set, so the helper's file capability does nothing; remove DISABLE_SETUID = True from this execution point, and start HTCondor without NoNewPrivileges");
    if (fstatvfs(libexec_dir, &mount) == 0 && mount.f_flag & ST_NOSUID)
        return deny(a, HOLD_AGENT, "the helper lies on a file system mounted nosuid, so its file capability does nothing; install it elsewhere");
    return deny(a, HOLD_AGENT, "the helper lacks the file capability cap_sys_admin; run condor_bridge.native_install again (a copy or an upgrade loses it)");
}

/* Move into the namespace the agent passes, for good, and lose all power. */
static bool enter(struct answer *a, const char *request) {
    struct stat theirs, ours;
    if (!able_to_enter(a) || !ask(a, request, LARK_ANSWER_MS, LARK_CONNECT_MS)) return false;
    if (a->fd < 0) return deny(a, HOLD_AGENT, "the agent said ok but passed no network namespace");
    if (ioctl(a->fd, NS_GET_NSTYPE) != CLONE_NEWNET) return deny(a, HOLD_AGENT, "what the agent passed is not a network namespace");
    if (fstat(a->fd, &theirs) || stat("/proc/self/ns/net", &ours)) return deny(a, HOLD_AGENT, "cannot compare namespaces: %s", strerror(errno));
    if (theirs.st_dev == ours.st_dev && theirs.st_ino == ours.st_ino)
        return deny(a, HOLD_AGENT, "the agent passed the network that HTCondor itself is in");
    if (setns(a->fd, CLONE_NEWNET)) return deny(a, HOLD_AGENT, "setns: %s", strerror(errno));
    if (stat("/proc/self/ns/net", &ours) || theirs.st_dev != ours.st_dev || theirs.st_ino != ours.st_ino)
        return deny(a, HOLD_AGENT, "not in the job's network after setns");
    close(a->fd);
    a->fd = -1;
    return become_powerless(a);
}

static bool write_map(struct answer *a, const char *file, const char *text) {
    int fd = open(file, O_WRONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : write(fd, text, strlen(text));
    int why = errno;
    if (fd >= 0) close(fd);
    return n == (ssize_t)strlen(text) || deny(a, HOLD_AGENT, "%s: %s; this node does not let ordinary users make user namespaces", file, strerror(why));
}

/* A user namespace in which we are who we were, and a network namespace that belongs to it. */
static bool new_namespaces(struct answer *a) {
    char uids[64], gids[64];
    snprintf(uids, sizeof uids, "%u %u 1\n", geteuid(), geteuid());
    snprintf(gids, sizeof gids, "%u %u 1\n", getegid(), getegid());
    if (unshare(CLONE_NEWUSER | CLONE_NEWNET))
        return deny(a, HOLD_AGENT, "unshare: %s; this node does not let ordinary users make user namespaces (user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)", strerror(errno));
    return write_map(a, "/proc/self/setgroups", "deny") && write_map(a, "/proc/self/uid_map", uids) && write_map(a, "/proc/self/gid_map", gids);
}

/* Programs with file capabilities must not give the job power over its own namespace. */
static bool empty_bounding_set(struct answer *a) {
    for (int cap = 0; cap < 64 && prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) || prctl(PR_CAPBSET_READ, cap, 0, 0, 0) != 0)
            return deny(a, HOLD_AGENT, "cannot drop capability %d from the bounding set: %s", cap, strerror(errno));
    return true;
}

/* Let the agent plug the lane into the network namespace we are in, or make one for it. The agent's socket is opened
 * before: in a user namespace root is not to be recognised any more. Until exec no process of the same user can trace us. */
static bool attach_job(struct answer *a) {
    if (!able_to_enter(a)) return false;
    int agent = reach_agent(a, LARK_CONNECT_MS);
    if (agent < 0) return false;
    if (attach == BY_USERNS && (!new_namespaces(a) || !empty_bounding_set(a))) return false;
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)) return deny(a, HOLD_AGENT, "prctl: %s", strerror(errno));
    if (!become_powerless(a) || !converse(a, agent, "LARK1 attach job", LARK_ANSWER_MS)) return false;
    if (a->fd >= 0) return deny(a, HOLD_AGENT, "the agent passed a descriptor that nobody asked for: do agent and helper fit together?");
    return true;
}

static bool get_in(struct answer *a) {
    return attach == BY_CAPABILITY ? enter(a, "LARK1 enter job") : attach_job(a);
}

/* The environment as it was given to us. Because of the capability the C library has taken out what would be dangerous
 * here (LD_LIBRARY_PATH, TMPDIR, ...), but the job is entitled to it. The strings still stand where the kernel put them:
 * between the last argument and the name we were executed by. NULL: they do not. */
static char **given_environment(int argc, char **argv) {
    char *first = argv[argc - 1] + strlen(argv[argc - 1]) + 1, *end = (char *)getauxval(AT_EXECFN);
    size_t count = 0;
    if (first > end) return NULL;
    for (char *p = first; p < end; p += strlen(p) + 1) count++;
    char **all = calloc(count + 1, sizeof *all);
    if (!all) return NULL;
    count = 0;
    for (char *p = first; p < end; p += strlen(p) + 1) all[count++] = p;
    for (char **left = environ; *left; left++) { /* a check of the layout: what the C library left is among it */
        size_t i = 0;
        if (*left < first || *left >= end) continue; /* the C library's own copy: it rewrites GLIBC_TUNABLES */
        while (i < count && all[i] != *left) i++;
        if (i == count) return NULL;
    }
    return all;
}

static void drain_stdin(void) {
    char buffer[4096];
    ssize_t n;
    while ((n = read(STDIN_FILENO, buffer, sizeof buffer)) > 0 || (n < 0 && errno == EINTR)) continue;
    explicit_bzero(buffer, sizeof buffer);
}

/* Text inside a ClassAd string: neither old nor new syntax gives any of these letters a meaning. */
static void plain(char *text) {
    for (; *text; text++)
        if (*text == '"') *text = '\'';
        else if (*text == '\\') *text = '/';
        else if (*text < ' ' || *text > '~') *text = '?';
}

/* HTCondor takes a job whose wrapper failed back into the queue only if it finds the error file, and it looks as the user
 * condor (with the job's group), to whom the job's directory is closed: without letting it pass, the job would count as
 * completed. Nothing of the job has run, and the starter removes the directory at once. */
static int fail_job(struct answer *a) {
    struct answer ignored = {.fd = -1};
    become_powerless(&ignored); /* the file's name is the owner's; nothing of ours is needed to write it */
    char text[TEXT_MAX + 64], directory[4096];
    struct stat st;
    snprintf(text, sizeof text, "lark hold %d: %s\n", a->hold, a->text);
    const char *name = getenv("_CONDOR_WRAPPER_ERROR_FILE"), *slash = name ? strrchr(name, '/') : NULL;
    int fd = name ? open(name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0644) : -1;
    if (fd >= 0) {
        if (write(fd, text, strlen(text)) < 0 || fchmod(fd, 0644)) perror("lark-job-wrapper: error file");
        close(fd);
    }
    if (fd >= 0 && slash && slash != name && (size_t)(slash - name) < sizeof directory) {
        memcpy(directory, name, (size_t)(slash - name));
        directory[slash - name] = 0;
        int dir = open(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (dir < 0 || fstat(dir, &st) || st.st_uid != geteuid() || fchmod(dir, (st.st_mode & 07777) | S_IXGRP | S_IXOTH))
            fprintf(stderr, "lark-job-wrapper: HTCondor may not find %s: %s\n", name, strerror(errno));
        if (dir >= 0) close(dir);
    }
    fprintf(stderr, "lark-job-wrapper: %s", text);
    return 126;
}

static void close_everything(void) {
#ifdef SYS_close_range
    if (syscall(SYS_close_range, 0u, ~0u, 0u) == 0) return;
#endif
    long most = sysconf(_SC_OPEN_MAX); /* Linux before 5.9 */
    for (int fd = 0; fd < (most > 0 && most < 65536 ? most : 65536); fd++) close(fd);
}

/* The agent reads the job's counters now and tells them to the starter, which listens for that only until its child has
 * ended. Nothing is believed of what is answered, nor who answers: in a user namespace root is not to be recognised. */
static void tell_exited(void) {
    struct answer ignored = {.fd = -1};
    int agent = connect_agent(&ignored, agent_path, LARK_GONE_MS, false);
    if (agent >= 0) converse(&ignored, agent, "LARK1 exited", LARK_EXITED_MS);
}

/* As process 1 of a PID namespace no signal of our own kills us: then the shell's word for it is all there is. */
static int end_as(int status, pid_t job) {
    if (WIFEXITED(status)) return WEXITSTATUS(status);
    sigset_t its;
    char theirs[32], ours[32];
    int number = WTERMSIG(status);
    if (WCOREDUMP(status)) { /* with kernel.core_uses_pid HTCondor looks for the core of the process that it started */
        snprintf(theirs, sizeof theirs, "core.%d", (int)job);
        snprintf(ours, sizeof ours, "core.%d", (int)getpid());
        rename(theirs, ours);
    }
    signal(number, SIG_DFL);
    sigemptyset(&its);
    sigaddset(&its, number);
    sigprocmask(SIG_UNBLOCK, &its, NULL);
    kill(getpid(), number);
    return 128 + number;
}

/* What is left of the wrapper while the job runs. HTCondor takes it for the job: signals are passed on, and the job's
 * end becomes its own. Not dumpable: nobody of the same user can trace it, and it leaves no core beside the job's. */
static int wait_for_job(pid_t job, const sigset_t *all) {
    int status = 0, number;
    close_everything(); /* a reader of the job's output sees its end when the job closes it */
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    prctl(PR_SET_NAME, "lark-job-waits", 0, 0, 0);
    for (pid_t ended = 0; ended != job;) {
        number = sigwaitinfo(all, NULL);
        if (number > 0 && number != SIGCHLD) kill(job, number);
        if (number == SIGCHLD) /* one signal may speak of several; as process 1 there are the job's orphans, too */
            while ((ended = waitpid(-1, &status, WNOHANG)) > 0 && ended != job) continue;
    }
    tell_exited();
    return end_as(status, job);
}

static int job_wrapper(struct answer *a, int argc, char **argv) {
    if (!argv[1]) {
        deny(a, HOLD_AGENT, "no command given; this is HTCondor's USER_JOB_WRAPPER");
        return fail_job(a);
    }
    char **environment = given_environment(argc, argv);
    if (!environment) {
        deny(a, HOLD_AGENT, "cannot find the environment that the job was given");
        return fail_job(a);
    }
    if (!open_libexec(a) || !get_in(a)) return fail_job(a);
    /* From here on signals are for the job: none is lost between the fork and the exec, they wait in the parent. */
    sigset_t all, given;
    struct sigaction usual = {.sa_handler = SIG_DFL}, children;
    sigfillset(&all);
    if (sigprocmask(SIG_SETMASK, &all, &given) || sigaction(SIGCHLD, &usual, &children)) {
        deny(a, HOLD_AGENT, "cannot block signals: %s", strerror(errno));
        return fail_job(a);
    }
    pid_t parent = getpid(), job = fork();
    if (job < 0) {
        deny(a, HOLD_AGENT, "fork: %s", strerror(errno));
        return fail_job(a);
    }
    if (job > 0) return wait_for_job(job, &all);
    /* Whoever kills the parent outright, kills the job. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) || getppid() != parent) _exit(126);
    /* The job leads what we have led, so that `kill 0` in it does not reach the parent. */
    if (getsid(0) == parent) setsid();
    else if (getpgrp() == parent) setpgid(0, 0);
    sigaction(SIGCHLD, &children, NULL);
    sigprocmask(SIG_SETMASK, &given, NULL);
    execve(argv[1], argv + 1, environment);
    deny(a, HOLD_AGENT, "cannot execute %.500s: %s", argv[1], strerror(errno));
    _exit(fail_job(a));
}

/* A multi-file plugin reports failures in the file after -outfile; HTCondor puts the text into the hold reason. */
static int fail_plugin(struct answer *a, char **argv) {
    struct answer ignored = {.fd = -1};
    become_powerless(&ignored);
    plain(a->text);
    fprintf(stderr, "lark-plugin: hold %d: %s\n", a->hold, a->text);
    for (char **word = argv; *word; word++) {
        if (strcmp(*word, "-outfile") != 0 || !word[1]) continue;
        int fd = open(word[1], O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600);
        if (fd < 0) break;
        dprintf(fd, "[ TransferSuccess = false; TransferUrl = \"\"; TransferError = \"lark hold %d: %s\" ]\n", a->hold, a->text);
        close(fd);
        break;
    }
    return 1;
}

static int plugin(struct answer *a, const char *name, int argc, char **argv) {
    char file[256], real[4096];
    struct stat st;
    bool asks_only = argv[1] && strcmp(argv[1], "-classad") == 0;
    if (!open_libexec(a)) return fail_plugin(a, argv);
    if (strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") != strlen(name) || strlen(name) > 200) {
        deny(a, HOLD_AGENT, "not a name of a plugin");
        return fail_plugin(a, argv);
    }
    snprintf(file, sizeof file, "plugins/%s.real", name);
    if (fstatat(libexec_dir, "plugins", &st, AT_SYMLINK_NOFOLLOW) == 0 && (!S_ISDIR(st.st_mode) || st.st_uid != 0 || st.st_mode & 022)) {
        deny(a, HOLD_AGENT, "plugins beside the helper must be a directory of root, writable by nobody else");
        return fail_plugin(a, argv);
    }
    int found = root_line(a, file, real, sizeof real);
    if (found == 0) deny(a, HOLD_AGENT, "called as %.200s, which is none of my names and has no %.220s", name, file);
    if (found != 1) return fail_plugin(a, argv);
    if (real[0] != '/') {
        deny(a, HOLD_AGENT, "%.220s must hold one absolute path", file);
        return fail_plugin(a, argv);
    }
    if (!asks_only && attach != BY_CAPABILITY) { /* the network does not exist before the job does */
        deny(a, HOLD_POLICY, "files given by URL are not transferred on this node: without the helper's file capability there is no job network before the job starts (lark-attach); transfer them from the submit directory, or use another node");
        return fail_plugin(a, argv);
    }
    /* -classad asks what the plugin can do. It runs outside of any job, as HTCondor itself. */
    if (!(asks_only ? geteuid() == 0 || become_powerless(a) : enter(a, "LARK1 enter plugin"))) return fail_plugin(a, argv);
    char **environment = given_environment(argc, argv);
    argv[0] = real;
    if (environment) execve(real, argv, environment);
    deny(a, HOLD_AGENT, "cannot execute %.500s: %s", real, strerror(errno));
    return fail_plugin(a, argv);
}

/* Would the kernel give lark-job its capability, if we executed it? By the kernel's own rules (capabilities(7)): the
 * file has it, its mount is not nosuid, no_new_privs is not set, and the bounding set holds it. (User namespaces:
 * open_libexec.) To execute it in order to know would cost every job a process more. */
static bool capability_is_there(void) {
    struct vfs_ns_cap_data found; /* the longer of the two kinds */
    struct stat st;
    struct statvfs mount;
    char path[sizeof libexec_path + 16];
    snprintf(path, sizeof path, "%s/lark-job", libexec_path);
    ssize_t n = getxattr(path, "security.capability", &found, sizeof found);
    return n >= (ssize_t)XATTR_CAPS_SZ_2 && le32toh(found.magic_etc) & VFS_CAP_FLAGS_EFFECTIVE &&
           le32toh(found.data[0].permitted) & CAP_TO_MASK(CAP_SYS_ADMIN) && stat(path, &st) == 0 && S_ISREG(st.st_mode) &&
           access(path, X_OK) == 0 && statvfs(path, &mount) == 0 && !(mount.f_flag & (ST_NOSUID | ST_NOEXEC)) &&
           prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0 && prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN, 0, 0, 0) == 1;
}

/* Run `lark-job check` as the job's user that we are: what would make the wrapper fail is better told now, while the job
 * can still be held for it. Its words are read from a pipe. Only where there is a doubt. */
static bool wrapper_will_work(struct answer *a) {
    int ends[2], status = -1;
    char said[512] = "";
    if (attach == BY_CAPABILITY && geteuid() != 0 && getuid() != 0 && capability_is_there()) return true;
    if (pipe2(ends, O_CLOEXEC)) return deny(a, HOLD_AGENT, "pipe: %s", strerror(errno));
    pid_t child = fork();
    if (child == 0) {
        char *const words[] = {(char *)"lark-job", (char *)"check", NULL}, *const nothing[] = {NULL};
        dup2(ends[1], STDOUT_FILENO);
        dup2(ends[1], STDERR_FILENO);
        char path[sizeof libexec_path + 16];
        snprintf(path, sizeof path, "%s/lark-job", libexec_path);
        execve(path, words, nothing);
        dprintf(STDERR_FILENO, "%.300s: cannot be executed: %s", path, strerror(errno));
        _exit(1);
    }
    close(ends[1]);
    for (size_t got = 0; child > 0 && got < sizeof said - 1;) {
        ssize_t n = read(ends[0], said + got, sizeof said - 1 - got);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        got += (size_t)n;
    }
    close(ends[0]);
    if (child < 0) return deny(a, HOLD_AGENT, "fork: %s", strerror(errno));
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
    said[strcspn(said, "\n")] = 0;
    return deny(a, HOLD_AGENT, "%s", said[0] ? said : "lark-job: died while checking its capability");
}

static int hook_prepare(struct answer *a) {
    drain_stdin();
    if (open_libexec(a) && wrapper_will_work(a) && ask(a, "LARK1 begin", LARK_ANSWER_MS, LARK_CONNECT_MS)) return 0;
    plain(a->text);
    printf("HookStatusCode = %d\nHookStatusMessage = \"lark: %s\"\n", a->hold, a->text);
    fprintf(stderr, "lark-hook-prepare: hold %d: %s\n", a->hold, a->text);
    return fflush(stdout) ? 1 : 0;
}

static int hook_exit(struct answer *a) {
    drain_stdin();
    if (open_libexec(a) && ask(a, "LARK1 stage-out", LARK_EXIT_MS - LARK_CONNECT_MS, LARK_CONNECT_MS)) return 0;
    /* The job's result is not lost for this: without the phase, stage-out has the network of the run. */
    fprintf(stderr, "lark-hook-exit: %s\n", a->text);
    return 0;
}

static int ping(struct answer *a) {
    bool able = open_libexec(a) && ask(a, "LARK1 ping", LARK_PING_MS, 0);
    plain(a->text);
    if (able) printf("HasLarkNetwork = true\nLarkNetworkReason = undefined\n- update:true\n");
    else printf("HasLarkNetwork = false\nLarkNetworkReason = \"%s\"\n- update:true\n", a->text);
    return fflush(stdout) ? 1 : 0;
}

/* Could the wrapper enter a network here? Asks nobody; for the installer and for administrators, as an ordinary user. */
static int check(struct answer *a) {
    if (open_libexec(a) && able_to_enter(a) && (attach != BY_USERNS || new_namespaces(a))) {
        printf(attach == BY_CAPABILITY ? "lark-job: the file capability works here\n"
               : attach == BY_USERNS   ? "lark-job: user namespaces work here\n"
                                       : "lark-job: ready for the starter's own network namespaces\n");
        return 0;
    }
    fprintf(stderr, "lark-job: %s\n", a->text);
    return 1;
}

int main(int argc, char **argv) {
    struct answer a = {.hold = HOLD_AGENT, .fd = -1};
    /* A caller may have closed 0, 1 or 2: a socket must not be mistaken for one of them. */
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", fd ? O_WRONLY : O_RDONLY) != fd) return 126;
    const char *path = (const char *)getauxval(AT_EXECFN);
    if (argc < 1 || !argv[0] || !path) return 126;
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if (strcmp(name, "lark-job-wrapper") == 0) return job_wrapper(&a, argc, argv);
    if (strcmp(name, "lark-hook-prepare") == 0) return hook_prepare(&a);
    if (strcmp(name, "lark-hook-exit") == 0) return hook_exit(&a);
    if (strcmp(name, "lark-ping") == 0) return ping(&a);
    if (strcmp(name, "lark-job") == 0 && argc == 2 && strcmp(argv[1], "check") == 0) return check(&a);
    if (strcmp(name, "lark-job") == 0 || strcmp(name, "lark-hook") == 0 || strcmp(name, "lark-plugin") == 0) {
        fprintf(stderr, "%s: HTCondor calls this by its other names: lark-job-wrapper, plugins/NAME, lark-hook-prepare, lark-hook-exit, lark-ping.\n"
                        "`lark-job check`, as an ordinary user, tells whether job networks can be entered here.\n", name);
        return 2;
    }
    return plugin(&a, name, argc, argv);
}
